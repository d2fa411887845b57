"Backbones of both libraries: weights from files and hubs, what stays frozen, and real photos."

import copy
import urllib.error

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from see_nb.data.datasets import data_root
from see_nb.retrieval.metrics import recall_at_k
from see_nb.training.models import create_model


@pytest.mark.parametrize(
    "name",
    [
        "timm/resnet18",
        "convnext_atto",
        "levit_128s",
        "mobilenetv3_small_050",
        "deit3_small_patch16_224",
        "swin_tiny_patch4_window7_224",
    ]
    + [
        "torchvision/resnet18",
        "squeezenet1_0",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "swin_t",
    ],
)
def test_a_file_of_the_whole_classifier_fills_any_backbone(name, tmp_path):
    library, _, short = name.rpartition("/")
    in_timm = timm.is_model(short) and library != "torchvision"
    whole = (timm.create_model(short) if in_timm else models.get_model(short)).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    model = create_model(name, 8, weights=tmp_path / "whole.pth").eval()
    own = whole.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in model.backbone.state_dict().items())
    with torch.no_grad():
        features = model.features(torch.rand(1, 3, model.image_size, model.image_size))
    assert features.shape == (1, model.n_features)


@pytest.mark.parametrize(
    "name", ["resnet50", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_moves_all_but_the_frozen_parts(name, checkpointing):
    torch.manual_seed(0)
    model = create_model(
        name, 8, pretrained=False, image_size=64, checkpointing=checkpointing, batch_norms="eval"
    ).train()
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    expected = ("patch_embed",) if "vit" in name or "deit" in name else ()
    assert frozen == {
        key for key, _ in model.named_parameters() if any(part in key for part in expected)
    }
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(torch.rand(4, 3, 64, 64)).square().mul(torch.arange(8)).sum().backward()
    optimizer.step()
    buffers = {key for key, _ in model.named_buffers()}
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == before.keys() - frozen - buffers


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_copy_is_a_model_of_its_own(checkpointing):
    model = create_model(
        "resnet50", 8, pretrained=False, checkpointing=checkpointing, batch_norms="eval"
    )
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert not any(
        module.training for module in twin.train().modules() if isinstance(module, nn.BatchNorm2d)
    )
    images = torch.rand(2, 3, 64, 64)
    assert twin.features(images).abs().sum() > 0 == model.features(images).abs().sum()


def test_resnet50_starts_from_the_first_weights_of_torchvision(monkeypatch):
    asked, state = [], models.resnet50().state_dict()
    download = "torchvision.models._api.load_state_dict_from_url"
    monkeypatch.setattr(download, lambda url, **options: asked.append(url) or state)
    model = create_model("resnet50", 8)
    assert asked == [models.ResNet50_Weights.IMAGENET1K_V1.url]
    assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())

    def no_network(url, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(download, no_network)
    with pytest.raises(
        ValueError,
        match=r"resnet50 cannot be had \(URLError\). Give a file \(weights=.*pretrained=False",
    ):
        create_model("resnet50", 8)


def test_real_weights_tell_real_birds_apart():
    weights, photos = (
        data_root() / "squeezenet1_0.safetensors",
        data_root() / "CUB_200_2011" / "images",
    )
    for path in (weights, photos):
        if not path.exists():
            pytest.skip(f"there is no {path}")
    folders = sorted(path for path in photos.iterdir() if any(path.glob("*.jpg")))[:50:5]
    files = [
        (file, label)
        for label, folder in enumerate(folders)
        for file in sorted(folder.glob("*.jpg"))[:10]
    ]
    images = torch.stack(
        [
            pil_to_tensor(center_crop(resize(Image.open(file).convert("RGB"), [256]), [224]))
            for file, _ in files
        ]
    )
    labels = torch.tensor([label for _, label in files])
    recall = {}
    for name, options in {"real": {"weights": weights}, "random": {"pretrained": False}}.items():
        torch.manual_seed(0)
        model = create_model("squeezenet1_0", 512, **options).eval()
        with torch.no_grad():
            embeddings = torch.cat([model(batch) for batch in images.split(20)])
        recall[name] = recall_at_k(embeddings, labels, ks=(1,))[1]
    assert recall["real"] > recall["random"] + 0.2, recall
