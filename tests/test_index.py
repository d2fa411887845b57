"An index as a user meets it: three commands, photos that come and go, a process that dies, bad input."

import json
import os
import shutil
import signal
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import forked
from PIL import Image

from see_nb.cli import main
from see_nb.errors import SeeError
from see_nb.retrieval import index as module
from see_nb.retrieval.index import Index
from see_nb.training.export import open_model
from see_nb.training.recipes import Recipe
from see_nb.training.training import Run, empty_model, make_objective


def picture(path: Path, seed: int, size: int = 40) -> Path:
    "A small photo of noise."
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_model(path: Path, seed: int) -> Path:
    "The checkpoint of a small network."
    recipe = Recipe(dataset="folder", embedding_size=16, image_size=32, width=4)
    torch.manual_seed(seed)
    model = empty_model(recipe, 3, pretrained=False).eval()
    known = {"name": "folder", "version": "", "image_hash": ""}
    data = {"train": known | {"classes": ["a", "b"]}, "test": known | {"classes": ["c"]}}
    Run(recipe, model, make_objective(recipe, 2), ["a", "b"], {"run": "small"}, data).save(path)
    return path


@pytest.fixture
def album(tmp_path) -> Path:
    "Thirty photos of three classes."
    for i in range(30):
        picture(tmp_path / "album" / f"kind {i % 3}" / f"{i}.png", i)
    return tmp_path / "album"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "checkpoint.pt", 0)


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    "Files that were decoded for the model, in order."
    files, real = [], module.read_photo

    def read(path, *options):
        files.append(Path(path).name)
        return real(path, *options)

    monkeypatch.setattr(module, "read_photo", read)
    return files


def make(album, checkpoint, output, *more) -> int:
    paths = ("--photos", album, "--checkpoint", checkpoint, "--output", output)
    return main([str(a) for a in ("index", *paths, *more)])


def test_from_a_folder_to_a_page(album, checkpoint, tmp_path, capsys):
    output = tmp_path / "my.index"
    assert make(album, checkpoint, output, "--embeddings", tmp_path / "rows.npy") == 0
    assert "30 embedded, 0 unchanged, 0 dropped, 0 damaged" in capsys.readouterr().out
    assert np.load(tmp_path / "rows.npy").shape == (30, 16)
    photos = [str(album / "kind 1" / "4.png"), str(album / "kind 2" / "5.png")]
    page = tmp_path / "found.html"
    call = ["search", "--index", str(output), *photos, "-k", "3"]
    assert main([*call, "--json", "--html", str(page)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["query"], r["path"]) for r in rows if r["rank"] == 1] == list(zip(photos, photos))
    assert len(rows) == 6 and rows[0]["similarity"] == 1 and rows[0]["label"] == "kind 1"
    assert page.read_text().count("data:image/jpeg") == 8  # two queries, three neighbours each
    assert main([*call, "--classes", "kind 0"]) == 0
    table = capsys.readouterr().out
    assert table.count("kind 0/") == 6 and "similarity" in table


def test_search_is_exact(album, checkpoint, tmp_path):
    model, _ = open_model(checkpoint)
    index = Index.build(model, album)
    rows = torch.from_numpy(index.embeddings)
    expected = (rows @ rows.T).topk(5)
    found = index.search(rows, 5)
    assert found.rows.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(found.similarity, expected.values, atol=1e-6)
    one = picture(tmp_path / "other.png", 99)
    by_path, by_image = index.search(one, 4), index.search(module.read_photo(one), 4)
    assert by_path.rows.tolist() == by_image.rows.tolist()


def test_only_what_is_new_or_changed_is_embedded(album, checkpoint, tmp_path, seen, capsys):
    output = tmp_path / "my.index"
    make(album, checkpoint, output)
    assert len(seen) == 30
    seen.clear()
    for i in range(10):
        picture(album / "kind 3" / f"new {i}.png", 100 + i)
    (album / "kind 0" / "0.png").unlink()
    (album / "kind 1" / "1.png").rename(album / "kind 2" / "renamed.png")
    os.utime(album / "kind 2" / "2.png")  # touched, with the same content
    shutil.copy(album / "kind 0" / "3.png", album / "copy.png")
    picture(album / "kind 1" / "4.png", 200)  # another photo under an old name
    capsys.readouterr()
    assert main(["index", "--photos", str(album), "--output", str(output), "--add"]) == 0
    assert sorted(seen) == ["4.png"] + [f"new {i}.png" for i in range(10)]
    assert "11 embedded, 29 unchanged, 2 dropped" in capsys.readouterr().out
    added, afresh = Index.load(output), Index.build(open_model(checkpoint)[0], album)
    order = [added.photos.path.tolist().index(path) for path in afresh.photos.path]
    assert added.photos.label[order].tolist() == afresh.photos.label.tolist()
    np.testing.assert_allclose(added.embeddings[order], afresh.embeddings, atol=1e-6)


def test_photos_of_another_folder_join_and_a_class_can_come_from_a_list(
    album, checkpoint, tmp_path
):
    picture(tmp_path / "flat" / "a.png", 50)
    picture(tmp_path / "flat" / "b.png", 51)
    (tmp_path / "flat" / "labels.csv").write_text("path,label\na.png,wren\n")
    index = Index.build(open_model(checkpoint)[0], album)
    index.add(tmp_path / "flat")
    assert len(index) == 32
    assert index.photos.label.tolist()[-2:] == ["wren", ""]
    (tmp_path / "flat" / "labels.csv").write_text("file,class\na.png,wren\n")
    with pytest.raises(SeeError, match="expected a header with path and label"):
        index.add(tmp_path / "flat")


def bomb(path: Path) -> None:
    "A PNG of a few bytes that says it has 60,000 x 60,000 pixels."
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_damaged_photos_are_named_and_counted(album, checkpoint, tmp_path, capsys):
    whole = (album / "kind 0" / "0.png").read_bytes()
    (album / "kind 0" / "cut.png").write_bytes(whole[:300])
    (album / "kind 0" / "text.jpg").write_text("not a photo")
    bomb(album / "kind 1" / "bomb.png")
    assert make(album, checkpoint, tmp_path / "my.index") == 0
    said = capsys.readouterr()
    assert "30 embedded" in said.out and "3 damaged and left out" in said.out
    lines = [line for line in said.err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 3
    assert all(any(n in line for line in lines) for n in ("cut.png", "text.jpg", "bomb.png"))
    assert "bomb.png: expected at most 89 million pixels, got more than 179 million." in said.err
    for name in ("cut.png", "text.jpg"):
        (album / "kind 0" / name).write_bytes(whole)  # repaired: a copy of a known photo
    index = Index.load(tmp_path / "my.index", open_model(checkpoint)[0])
    changes = index.add(album)
    assert (changes.embedded, changes.unchanged, len(changes.damaged)) == (0, 32, 1)


def test_damaged_photos_that_are_searched_for_are_named(album, checkpoint, tmp_path, capsys, seen):
    output = tmp_path / "my.index"
    make(album, checkpoint, output)
    capsys.readouterr()
    queries = [album / "kind 1" / "4.png", album / "cut.png", album / "kind 2" / "5.png"]
    queries[1].write_bytes(queries[0].read_bytes()[:300])
    seen.clear()
    call = ["search", "--index", str(output), *map(str, queries), "-k", "1", "--json"]
    assert main(call) == 0
    assert sorted(seen) == ["4.png", "5.png", "cut.png"]
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["path"] for row in rows] == [str(queries[0]), str(queries[2])]
    assert said.err.startswith(f"left out: photo: {queries[1]} ") and said.err.count("\n") == 1
    found = Index.load(output, open_model(checkpoint)[0]).search(queries, 1)
    assert found.queries == [row["query"] for row in rows] and len(found.damaged) == 1


def test_an_approximate_index_keeps_its_kind(album, checkpoint, tmp_path, capsys):
    output = tmp_path / "my.index"
    make(album, checkpoint, output)
    before = output.read_bytes()
    assert make(album, checkpoint, output, "--add", "--kind", "hnsw") == 2
    assert "kind: an index keeps its kind." in capsys.readouterr().err
    assert output.read_bytes() == before


def test_where_embeddings_cannot_go_nothing_is_embedded(
    album, checkpoint, tmp_path, capsys, seen, monkeypatch
):
    output = tmp_path / "my.index"
    assert make(album, checkpoint, output, "--embeddings", tmp_path / "rows.xyz") == 2
    assert "expected one of .parquet, .npy, got '.xyz'" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
        assert make(album, checkpoint, output, "--embeddings", tmp_path / "rows.parquet") == 2
    assert 'pip install "see-nb[export]"' in capsys.readouterr().err
    assert not seen and not output.exists()
    assert make(album, checkpoint, output, "--embeddings", tmp_path / "rows.parquet") == 0
    assert (tmp_path / "rows.parquet").exists()


def test_bad_input_is_one_line(album, checkpoint, tmp_path, capsys):
    output = tmp_path / "my.index"
    make(album, checkpoint, output)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("not a photo")
    (tmp_path / "cut.index").write_bytes(output.read_bytes()[:-100])
    (tmp_path / "text.index").write_text("not an index")
    changed = bytearray(output.read_bytes())
    changed[-200] ^= 1
    (tmp_path / "changed.index").write_bytes(changed)
    other = save_model(tmp_path / "other.pt", 1)
    photo, new = album / "kind 0" / "0.png", tmp_path / "new.index"
    calls = {
        "is there. Add to it with --add": ("index", "--photos", album, "--checkpoint", checkpoint,
                                           "--output", output),
        "expected the model": ("index", "--photos", album, "--output", new),
        "there is no such file": ("index", "--photos", album, "--checkpoint", "/none.pt", "--output", new),
        "cannot be used": ("index", "--photos", album, "--checkpoint", photo, "--output", new),
        "has no config.json": ("index", "--photos", album, "--checkpoint", album, "--output", new),
        "there is no photo or folder /none": ("index", "--photos", "/none", "--checkpoint", checkpoint,
                               "--output", new),
        "expected images": ("index", "--photos", tmp_path / "empty", "--checkpoint", checkpoint,
                            "--output", new),
        "of which 1 are damaged": ("index", "--photos", tmp_path / "broken", "--checkpoint",
                                   checkpoint, "--output", new),
        "nothere.pt: there is no such file": ("search", photo, "--index", output, "--checkpoint",
                                              tmp_path / "nothere.pt"),
        "there is no photo or folder nothere.jpg": ("search", "nothere.jpg", "--index", output),
        "made by model": ("search", photo, "--index", output, "--checkpoint", other),
        "cut.index is damaged, or not an index": ("search", photo, "--index",
                                                  tmp_path / "cut.index"),
        "text.index is damaged": ("search", photo, "--index", tmp_path / "text.index"),
        "changed.index is damaged": ("search", photo, "--index", tmp_path / "changed.index"),
        "none.index. `see-nb index` makes one": ("search", photo, "--index", "/none.index"),
        "a.png cannot be read": ("search", tmp_path / "broken" / "a.png", "--index", output),
        "no photo of class 'kind 9'": ("search", photo, "--index", output, "--classes", "kind 9"),
        "expected at least 1 neighbour": ("search", photo, "--index", output, "-k", "0"),
        "expected one or more to search for": ("search", "--index", output),
    }  # fmt: skip
    capsys.readouterr()
    for words, call in calls.items():
        assert main([str(a) for a in call]) == 2, words
        said = capsys.readouterr().err
        said = [line for line in said.splitlines() if line.startswith("see-nb: ")]
        assert len(said) == 1 and words in said[0], (words, said)
    assert not new.exists()


def test_killed_while_indexing_nothing_is_lost(album, checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "my.index"
    model, source = open_model(checkpoint)
    Index.build(model, album, path=output, source=source)
    before = output.read_bytes()
    for i in range(300):
        picture(album / "more" / f"{i}.png", 1000 + i, 8)
    journal = module._journal_path(output)

    def work():
        model.register_forward_hook(lambda *_: time.sleep(0.3))
        Index.load(output, model).add(album, path=output)

    pid = forked(work)
    deadline = time.time() + 60
    while not (journal.exists() and journal.read_bytes().count(b";") >= 128):
        assert time.time() < deadline
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kept = journal.read_bytes().count(b";")
    assert 128 <= kept < 300
    assert output.read_bytes() == before  # the old index is whole
    index = Index.load(output, model)
    assert index.add(album, path=output).embedded == 300 - kept
    assert len(index) == 330 and not journal.exists()
    afresh = Index.build(model, album)
    assert index.photos.path.tolist() == afresh.photos.path.tolist()
    np.testing.assert_allclose(index.embeddings, afresh.embeddings, atol=1e-6)


def test_one_process_writes_at_a_time(album, checkpoint, tmp_path):
    model, _ = open_model(checkpoint)
    output = tmp_path / "my.index"
    ready, done = os.pipe(), os.pipe()

    def wait(*_):
        os.write(ready[1], b"x")
        os.read(done[0], 1)

    def work():
        model.register_forward_hook(wait)
        Index.build(model, album, path=output)

    pid = forked(work)
    os.read(ready[0], 1)
    with pytest.raises(SeeError, match=f"in use by process {pid}"):
        Index.build(model, album, path=output)
    os.write(done[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    assert len(Index.load(output, model)) == 30


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_says_what_it_finds(album, checkpoint, tmp_path, kind, capsys):
    assert make(album, checkpoint, tmp_path / "my.index", "--kind", kind) == 0
    assert f"{kind}, recall " in capsys.readouterr().out
    model, _ = open_model(checkpoint)
    index, exact = Index.load(tmp_path / "my.index", model), Index.build(model, album)
    assert index.recall >= 0.95
    rows = index.embeddings
    found, expected = index.search(rows, 10).rows, exact.search(rows, 10).rows
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected)]) >= 0.95
    assert index.search(rows, 30).rows.min() >= 0  # more than a few cells hold
