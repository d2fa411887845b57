"Backbones: weights from files and hubs, what stays frozen, and real photos."

import copy

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

from see_nb.data.datasets import data_root
from see_nb.retrieval.metrics import recall_at_k
from see_nb.training.models import SHORT_NAMES, create_model


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "convnext_atto",
        "levit_128s",
        "mobilenetv3_small_050",
        "deit3_small_patch16_224",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_a_file_of_the_whole_classifier_fills_any_backbone(name, tmp_path):
    whole = timm.create_model(name).eval()
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
def test_a_step_moves_all_but_the_frozen_parts(name):
    torch.manual_seed(0)
    model = create_model(name, 8, pretrained=False, image_size=64, batch_norms="eval").train()
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    expected = ("patch_embed",) if "vit" in name or "deit" in name else ()
    assert frozen == {
        key for key, _ in model.named_parameters() if any(part in key for part in expected)
    }
    for key, value in model.named_parameters():  # timm begins with branches that add nothing
        if key.endswith("bn3.weight"):
            nn.init.ones_(value)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(torch.rand(4, 3, 64, 64)).square().mul(torch.arange(8)).sum().backward()
    optimizer.step()
    buffers = {key for key, _ in model.named_buffers()}
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == before.keys() - frozen - buffers


def test_a_copy_is_a_model_of_its_own():
    model = create_model("resnet50", 8, pretrained=False, batch_norms="eval")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert not any(
        module.training for module in twin.train().modules() if isinstance(module, nn.BatchNorm2d)
    )
    images = torch.rand(2, 3, 64, 64)
    assert twin.features(images).abs().sum() > 0 == model.features(images).abs().sum()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: (
            {f"net.encoder.{k}": v for k, v in state.items()}
            | {"objective.loss.proxies": torch.zeros(3, 16)}
        ),
        lambda state: {k: v for k, v in state.items() if not k.startswith("head.")},
    ],
    ids=["model", "compiled and parallel", "Lightning", "a module with its loss", "without head"],
)
def test_weights_are_found_within_what_was_saved(tmp_path, wrap):
    model = create_model("conv4", 16, width=4)
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pt")
    again = create_model("conv4", 8, width=4, weights=tmp_path / "weights.pt")
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[name], tensor)


def test_resnet50_starts_from_the_first_weights_of_torchvision(monkeypatch):
    config = timm.get_pretrained_cfg(SHORT_NAMES["resnet50"][0])
    assert config.url.endswith(models.ResNet50_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])

    def no_network(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("see_nb.training.models.refuse_missing_weights", lambda backbone: None)
    monkeypatch.setattr("timm.models._builder.load_pretrained", no_network)
    with pytest.raises(
        ValueError,
        match=r"resnet50 cannot be had with weights \(OSError\). Give a file \(weights=.*pretrained=False",
    ):
        create_model("resnet50", 8)


def test_real_weights_tell_real_birds_apart():
    weights, photos = (
        data_root() / "resnet50_imagenet.safetensors",
        data_root() / "cub200_2010" / "images",
    )
    for path in (weights, photos):
        if not path.exists():
            pytest.skip(f"there is no {path}")
    folders = sorted(path for path in photos.iterdir() if any(path.glob("*.jpg")))[:50:5]
    files = [
        (file, label)
        for label, folder in enumerate(folders)
        for file in sorted(folder.glob("*.jpg"))[:8]
    ]
    images = torch.stack(
        [center_crop(pil_to_tensor(Image.open(file).convert("RGB")), [160]) for file, _ in files]
    )
    labels = torch.tensor([label for _, label in files])
    recall = {}
    for name, options in {"real": {"weights": weights}, "random": {"pretrained": False}}.items():
        torch.manual_seed(0)
        model = create_model("resnet50_v1", 512, **options).eval()
        with torch.no_grad():
            features = torch.cat([model.features(batch) for batch in images.split(20)])
        recall[name] = recall_at_k(nn.functional.normalize(features), labels, ks=(1,))[1]
    assert recall["real"] > recall["random"] + 0.2, recall
