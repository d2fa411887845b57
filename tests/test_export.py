"A model that leaves the training: as a folder, as ONNX, and with its report."

import html
import json
import re
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from see_nb import SeeError, create_model
from see_nb.cli import main
from see_nb.retrieval.index import Index
from see_nb.training import export
from see_nb.training.export import (
    export_onnx,
    index_with_model,
    load_folder,
    open_model,
    save_folder,
)
from see_nb.training.recipes import Recipe
from see_nb.training.run import Run, empty_model, load_run, make_objective


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
    assert parts == ["Recall@K", "Curves", "Worst searches", "Most confused classes", "Next"]
    assert "<title>Training on photos</title>" in page and "see-nb index --photos" in page
    assert page.count("data:image/jpeg") >= 6 and "<svg" in page
    assert not re.search(r'(src|href)="(http|/)', page)
    row = json.loads((trained / "results.jsonl").read_text())
    assert f"{row['recall_at_1']:.1%}" in page


def test_all_ways_out_give_the_same_embeddings(trained, tmp_path, capsys):
    onnx, folder = tmp_path / "model.onnx", tmp_path / "model"
    call = ["export", "--checkpoint", str(trained / "checkpoint.pt")]
    assert main([*call, "--onnx", str(onnx), "--folder", str(folder)]) == 0
    assert "largest difference to PyTorch" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.data"))  # one file
    assert b"site-packages" not in onnx.read_bytes() and b"see_nb/" not in onnx.read_bytes()
    model, _ = open_model(trained / "checkpoint.pt")
    session = onnxruntime.InferenceSession(onnx)
    for size in (1, 4, 11):
        images = torch.randint(0, 256, (size, 3, 48, 48), dtype=torch.uint8)
        with torch.no_grad():
            expected = model(images)
            assert torch.equal(load_folder(folder)(images), expected)
        (got,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(got, expected, atol=1e-4)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json",
                                                        "model.safetensors"]  # fmt: skip
    index = Index.build(open_model(folder)[0], trained.parent / "photos", path=tmp_path / "index")
    assert (
        Index.load(tmp_path / "index", model).stored.made_by == index.stored.made_by
    )  # one and the same model


def test_damaged_test_photos_do_not_stop_an_evaluation(trained, tmp_path, capsys):
    shutil.copytree(trained.parent / "photos", tmp_path / "photos")
    for kind in (tmp_path / "photos").iterdir():
        (kind / "0.jpg").write_text("not a photo")
    call = ["evaluate", "--checkpoint", str(trained / "checkpoint.pt"), "--root"]
    assert main([*call, str(tmp_path / "photos")]) == 2
    said = capsys.readouterr().err
    assert "6 of 24 photos cannot be read" in said and "--skip-damaged" in said
    assert main([*call, str(tmp_path / "photos"), "--skip-damaged"]) == 0
    said = capsys.readouterr()
    assert "6 of 24 photos cannot be read" in said.err and "18 images of 6 classes" in said.out


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONNX_TOLERANCE", 0.0)
    model = create_model("conv4", 8, width=4, image_size=32)
    with pytest.raises(SeeError, match="the embeddings differ by"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_export_tells_no_path_and_replaces_an_older_one_whole(trained, tmp_path, capsys):
    secret, folder = tmp_path / "jane.doe" / "weights.pt", tmp_path / "model"
    secret.parent.mkdir()
    run = load_run(trained / "checkpoint.pt")
    torch.save(run.model.backbone.state_dict(), secret)
    run.recipe = replace(run.recipe, weights=str(secret))
    run.save(tmp_path / "run.pt")
    secret.unlink()
    call = ["export", "--checkpoint", str(tmp_path / "run.pt"), "--folder", str(folder)]
    assert main(call) == 0 and main(call[:3]) == 2
    assert not any(b"jane.doe" in file.read_bytes() for file in folder.iterdir())
    (folder / "README.md").write_text("an older card")
    assert main(call) == 0
    assert "an older card" not in (folder / "README.md").read_text()
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(SeeError, match="are others than config.json says"):
        load_folder(folder)
    (folder / "notes.txt").write_text("mine")
    for place, words in ((folder, "notes.txt"), (trained, "which see-nb did not write")):
        assert main([*call[:-1], str(place)]) == 2
        assert words in capsys.readouterr().err
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "graph.onnx").write_text("mine")
    assert main([*call[:3], "--onnx", str(tmp_path / "graph.onnx")]) == 2
    assert "see-nb did not write it" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "graph.onnx",
        "jane.doe",
        "model",
        "run.pt",
    ]


@pytest.mark.parametrize("backbone", ["resnet10t", "resnet50"])  # a short name has options
def test_the_card_says_how_to_do_without_the_package(tmp_path, backbone):
    recipe = Recipe(dataset="folder", backbone=backbone, embedding_size=16, image_size=32)
    model = empty_model(recipe, 3, pretrained=False).eval()
    known = {"name": "folder", "version": "", "image_hash": "", "classes": ["a", "b"]}
    data = {"train": known, "test": known | {"classes": ["c"]}}
    run = Run(recipe, model, make_objective(recipe, 2), ["a", "b"], {"run": "small"}, data)
    save_folder(run, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    code = card.partition("timm and torch alone:")[2].partition("Photos are cut")[0]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    code = code.replace("model.safetensors", str(tmp_path / "model" / "model.safetensors"))
    names = {"images": images}
    exec(textwrap.dedent(code.strip("\n")), names)  # noqa: S102
    with torch.no_grad():
        np.testing.assert_allclose(names["embeddings"].detach(), model(images), atol=1e-5)


def test_an_index_without_a_training(trained, tmp_path, capsys, monkeypatch):
    place = tmp_path / "my index"
    place.mkdir()
    weights, output = place / "weights.safetensors", place / "raw.index"
    backbone = create_model("resnet10t", 4, pretrained=False).backbone
    save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, weights)
    call = ["index", "--photos", str(trained.parent / "photos"), "--output", str(output)]
    raw = ["--backbone", "resnet10t"]
    assert main([*call, *raw, "--weights", str(weights)]) == 0
    photo = str(trained.parent / "photos" / "kind 1" / "1.jpg")
    assert main(["search", photo, "--index", str(output), "-k", "1", "--json"]) == 0
    said = capsys.readouterr().out
    assert "D = 512" in said and json.loads(said.splitlines()[-1])["path"] == photo
    report = tmp_path / "page.html"
    assert main(["evaluate", "--index", str(output), "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert "recall_at_1" in said and "Not in the catalogue: below a cosine of" in said
    page = html.unescape(report.read_text())
    assert f"see-nb app {trained.parent / 'photos'} '{place}'" in page
    assert "Worst searches" in page and (tmp_path / "page-classes.csv").exists()
    index = index_with_model(output)
    index.stored.note(threshold=1.1)  # nothing is as like as that
    assert index.search(photo, 1).unknown().all()
    assert main(["search", photo, "--index", str(output), "-k", "1"]) == 0
    assert "Probably not in the catalogue" in capsys.readouterr().out
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    options = {"dataset": "folder", "root": call[2], "image-size": 32, "output": tmp_path / "run"}
    train = ["train", *(str(a) for k, v in options.items() for a in (f"--{k}", v))]
    for line in ([*call[:-1], str(tmp_path / "other.index")], train):  # at once, not after retries
        assert main([*line, *raw]) == 2
        said = capsys.readouterr().err
        assert "hf download timm/resnet10t" in said and "127.0.0.1:9/timm" in said
        assert "--weights" in said and "Retrying" not in said
