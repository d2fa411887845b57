"A model that leaves the training: as a folder, as ONNX, and with its report."

import json
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from see_nb import HubModel, SeeError, create_model
from see_nb.cli import main
from see_nb.retrieval.index import Index
from see_nb.training import export
from see_nb.training.export import export_onnx, open_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    "A training on own photos from the command line: the folder of its output, beside the photos."
    top = tmp_path_factory.mktemp("own")
    colours = np.random.default_rng(0).integers(0, 200, (12, 3))
    for label, colour in enumerate(colours):
        (top / "photos" / f"kind {label}").mkdir(parents=True)
        for i in range(4):
            pixels = colour + np.random.default_rng(i).integers(0, 56, (70 + i, 80, 3))
            file = top / "photos" / f"kind {label}" / f"{i}.jpg"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    options = {"dataset": "folder", "root": top / "photos", "output": top / "run", "backbone":
               "conv4", "width": 4, "image-size": 48, "epochs": 2, "batch-size": 8, "validation": 0}  # fmt: skip
    assert main(["train", *(str(a) for k, v in options.items() for a in (f"--{k}", v))]) == 0
    return top / "run"


def test_a_training_on_own_photos_ends_with_a_report(trained):
    page = (trained / "report.html").read_text()
    parts = re.findall("<h2>(.*?)</h2>", page)
    assert parts == ["Recall@K", "Curves", "Good searches", "Worst searches",
                     "Most confused classes"]  # fmt: skip
    assert page.count("data:image/jpeg") >= 12 and "<svg" in page
    assert not re.search(r'(src|href)="(http|/)', page)
    row = json.loads((trained / "results.jsonl").read_text())
    assert f"{row['recall_at_1']:.1%}" in page


def test_all_ways_out_give_the_same_embeddings(trained, tmp_path, capsys):
    onnx, folder = tmp_path / "model.onnx", tmp_path / "model"
    call = ["export", "--checkpoint", str(trained / "checkpoint.pt")]
    assert main([*call, "--onnx", str(onnx), "--folder", str(folder)]) == 0
    assert "largest difference to PyTorch" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.data"))  # one file
    model, _ = open_model(trained / "checkpoint.pt")
    session = onnxruntime.InferenceSession(onnx)
    for size in (1, 4, 11):
        images = torch.randint(0, 256, (size, 3, 48, 48), dtype=torch.uint8)
        with torch.no_grad():
            expected = model(images)
            assert torch.equal(HubModel.from_pretrained(folder)(images), expected)
        (got,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(got, expected, atol=1e-4)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json",
                                                        "model.safetensors"]  # fmt: skip
    index = Index.build(open_model(folder)[0], trained.parent / "photos", path=tmp_path / "index")
    assert Index.load(tmp_path / "index", model).made_by == index.made_by  # one and the same model


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONNX_TOLERANCE", 0.0)
    model = create_model("conv4", 8, width=4, image_size=32)
    with pytest.raises(SeeError, match="the embeddings differ by"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_hub_is_one_line(trained, monkeypatch, capsys):
    for module in (
        huggingface_hub.constants,
        huggingface_hub.hf_api,
        huggingface_hub.file_download,
    ):
        if hasattr(module, "ENDPOINT"):
            monkeypatch.setattr(module, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(SeeError, match="the hub did not give it: check the name and the network"):
        HubModel.from_pretrained("nobody/no-such-model")
    call = ["export", "--checkpoint", str(trained / "checkpoint.pt")]
    assert main([*call, "--push", "nobody/no-such-model"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("see-nb: hub: nobody/no-such-model cannot be written")
    assert main(call) == 2
    assert "expected --onnx FILE, --folder FOLDER or --push NAME" in capsys.readouterr().err
