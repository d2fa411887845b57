"An index as a user meets it: three commands, photos that come and go, a process that dies, bad input."

import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import empty_png, forked, in_processes, photo, save_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from see_nb.cli import main
from see_nb.data.folders import OwnPhotos
from see_nb.errors import SeeError
from see_nb.retrieval import embedding as module
from see_nb.retrieval.database import Rows
from see_nb.retrieval.index import Index
from see_nb.training.export import open_model
from see_nb.training.recipes import Recipe
from see_nb.training.run import empty_model


@pytest.fixture
def album(tmp_path) -> Path:
    "Thirty photos of three classes."
    for i in range(30):
        photo(tmp_path / "album" / f"kind {i % 3}" / f"{i}.png", i)
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
    assert make(album, checkpoint, output, "--embeddings", tmp_path / "rows.parquet") == 0
    assert "30 embedded, 0 unchanged, 0 damaged" in capsys.readouterr().out
    assert np.stack(pd.read_parquet(tmp_path / "rows.parquet").embedding).shape == (30, 16)
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
    assert table.count(" kind 0 ") == 6 and "similarity" in table
    assert f"Paths are relative to {album}" in table and max(map(len, table.splitlines()[1:])) < 120


def test_only_what_is_new_or_changed_is_embedded(album, checkpoint, tmp_path, seen, capsys):
    output = tmp_path / "my.index"
    make(album, checkpoint, output)
    assert len(seen) == 30
    seen.clear()
    for i in range(10):
        photo(album / "kind 3" / f"new {i}.png", 100 + i)
    (album / "kind 0" / "0.png").unlink()
    (album / "kind 1" / "1.png").rename(album / "kind 2" / "renamed.png")
    os.utime(album / "kind 2" / "2.png")  # touched, with the same content
    shutil.copy(album / "kind 0" / "3.png", album / "copy.png")
    photo(album / "kind 1" / "4.png", 200)  # another photo under an old name
    capsys.readouterr()
    call = ["index", "--photos", str(album), "--output", str(output)]
    assert main([*call, "--add"]) == 0
    assert sorted(seen) == ["4.png"] + [f"new {i}.png" for i in range(10)]
    said = capsys.readouterr().out
    assert "11 embedded, 27 unchanged, 2 under a new name, copied or kept" in said
    assert "2 no longer on disk" in said and len(Index.load(output)) == 42
    assert main([*call, "--prune"]) == 0
    assert "2 dropped" in capsys.readouterr().out and len(seen) == 11  # nothing is embedded twice
    added, afresh = Index.load(output), Index.build(open_model(checkpoint)[0], album)
    order = [added.photos.path.tolist().index(path) for path in afresh.photos.path]
    assert added.photos.label[order].tolist() == afresh.photos.label.tolist()
    np.testing.assert_allclose(added.embeddings[order], afresh.embeddings, atol=1e-6)


def test_damaged_photos_are_named_and_counted(album, checkpoint, tmp_path, capsys):
    whole = (album / "kind 0" / "0.png").read_bytes()
    (album / "kind 0" / "cut.png").write_bytes(whole[:300])
    (album / "kind 0" / "text.jpg").write_text("not a photo")
    empty_png(album / "kind 1" / "bomb.png", 60_000, 60_000)
    for kind in (0, 1):
        (album / f"kind {kind}" / "empty.png").touch()  # the same content, twice
    assert make(album, checkpoint, tmp_path / "my.index") == 0
    said = capsys.readouterr()
    assert "30 embedded" in said.out and "5 damaged and left out" in said.out
    lines = [line for line in said.err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 5
    names = ("cut.png", "text.jpg", "bomb.png", "kind 0/empty.png", "kind 1/empty.png")
    assert all(any(n in line for line in lines) for n in names)
    assert "bomb.png cannot be read (DecompressionBombError" in said.err
    for name in ("cut.png", "text.jpg"):
        (album / "kind 0" / name).write_bytes(whole)  # repaired: a copy of a known photo
    index = Index.load(tmp_path / "my.index", open_model(checkpoint)[0])
    changes = index.add(album)
    assert (changes.embedded, changes.copies, len(changes.damaged)) == (0, 2, 3)


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


def test_where_embeddings_cannot_go_nothing_is_embedded(
    album, checkpoint, tmp_path, capsys, seen, monkeypatch
):
    output = tmp_path / "my.index"
    assert make(album, checkpoint, output, "--embeddings", tmp_path / "rows.xyz") == 2
    assert "rows.xyz: expected a name that ends in .parquet." in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
        assert make(album, checkpoint, output, "--embeddings", tmp_path / "rows.parquet") == 2
    assert 'pip install "see-nb[export]"' in capsys.readouterr().err
    assert not seen and not output.exists()


def test_bad_input_is_one_line(album, checkpoint, tmp_path, capsys):
    output = tmp_path / "my.index"
    make(album, checkpoint, output)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("not a photo")
    (tmp_path / "cut.index").write_bytes(output.read_bytes()[:-100])
    for name in ("text.index", "foreign.html"):
        (tmp_path / name).write_text("not an index")
    other = save_model(tmp_path / "other.pt", 1)
    photo, new = album / "kind 0" / "0.png", tmp_path / "new.index"
    calls = {
        "is there, with other photos. Add to it with --add": (
            "index", "--photos", tmp_path / "broken", "--checkpoint", checkpoint, "--output", output),
        "see-nb did not write it": (
            "search", photo, "--index", output, "--html", tmp_path / "foreign.html"),
        "expected the model": ("index", "--photos", album, "--output", new),
        "/none.pt: cannot be read (No such file": ("index", "--photos", album, "--checkpoint", "/none.pt", "--output", new),
        "is damaged, or not written by `see-nb train`": ("index", "--photos", album, "--checkpoint", photo, "--output", new),
        "`see-nb export --folder` writes such a folder": ("index", "--photos", album, "--checkpoint", album, "--output", new),
        "there is no folder /none": ("index", "--photos", "/none", "--checkpoint", checkpoint,
                               "--output", new),
        "below, got none": ("index", "--photos", tmp_path / "empty", "--checkpoint", checkpoint,
                            "--output", new),
        "a.png cannot be read": ("index", "--photos", tmp_path / "broken", "--checkpoint",
                                   checkpoint, "--output", tmp_path / "empty.index"),
        "nothere.pt: cannot be read (No such file": ("search", photo, "--index", output, "--checkpoint",
                                              tmp_path / "nothere.pt"),
        "there is no photo or folder nothere.jpg": ("search", "nothere.jpg", "--index", output),
        "made by model": ("search", photo, "--index", output, "--checkpoint", other),
        "cut.index cannot be used": ("search", photo, "--index",
                                                  tmp_path / "cut.index"),
        "text.index cannot be used": ("search", photo, "--index", tmp_path / "text.index"),
        "none.index. `see-nb index` makes one": ("search", photo, "--index", "/none.index"),
        "photo: ": ("search", tmp_path / "broken" / "a.png", "--index", output),
        "no photo of class 'kind 9'": ("search", photo, "--index", output, "--classes", "kind 9"),
        "expected folders for a new index": ("index", "--checkpoint", checkpoint, "--output", new),
        "expected --backbone or --checkpoint, got both": (
            "index", "--photos", album, "--checkpoint", checkpoint, "--backbone", "resnet10t", "--output", new),
        "backbone: expected conv4": (
            "index", "--photos", album, "--backbone", "resnet1", "--output", output, "--add"),
        "expected a name that ends in .html": ("search", photo, "--index", output, "--html", new),
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


class Colours(nn.Module):
    "A model of no weights: the mean colours of four quarters, as a row of length 1."

    def forward(self, images):
        quarters = nn.functional.adaptive_avg_pool2d(images.float() + 1, 2).flatten(1)
        return nn.functional.normalize(quarters, dim=1)


def contents(index: Index) -> dict[str, tuple]:
    "Path -> class and row."
    rows = index.embeddings.round(5).tolist()
    return dict(zip(index.photos.path, zip(index.photos.label, rows)))


class Place:
    "Photos and their index in a folder that may move, and what may happen to them."

    def __init__(self, top: Path, seed: int):
        self.top, self.number, self.chance = top / "place", 0, random.Random(seed)
        for i in range(4):
            photo(self.photos / f"kind {i % 2}" / f"{i}.png", i, (8, 8))
        Index.build(Colours(), self.photos, image_size=32, path=self.output)

    output = property(lambda self: self.top / "my.index")
    photos = property(lambda self: self.top / "photos")
    one = property(lambda self: self.chance.choice(sorted(self.photos.rglob("*.png"))))

    def draw(self):
        photo(self.photos / f"kind {self.chance.randrange(3)}" / f"{self.number}.png", self.number)

    def copy(self):
        shutil.copy(self.one, self.photos / f"copy {self.number}.png")

    def rename(self):
        self.one.rename(self.photos / f"renamed {self.number}.png")

    def change(self):
        photo(self.one, 1000 + self.number, (8, 8))

    def delete(self):
        if len(list(self.photos.rglob("*.png"))) > 1:
            self.one.unlink()

    def add(self):
        Index.load(self.output, Colours()).add(self.photos)

    def add_a_part(self):
        Index.load(self.output, Colours()).add(self.one.parent)

    def prune(self):
        Index.load(self.output).prune()

    def move(self):
        self.top = self.top.rename(self.top.parent / f"place {self.number}")

    def unmount(self):
        before = len(Index.load(self.output))
        self.photos.rename(self.top / "away")
        assert Index.load(self.output).prune().dropped == 0
        assert len(Index.load(self.output)) == before
        (self.top / "away").rename(self.photos)

    def kill(self):
        killed_while_adding(self.output, self.photos)


steps = st.sampled_from([n for n in vars(Place) if n[0] != "_" and callable(vars(Place)[n])])


@settings(max_examples=25)
@given(steps=st.lists(steps, min_size=4, max_size=14), seed=st.integers(0, 2**32 - 1))
def test_in_any_order_of_steps_the_index_is_what_the_disk_is(steps, seed):
    with tempfile.TemporaryDirectory() as top:
        place = Place(Path(os.path.realpath(top)), seed)
        for place.number, step in enumerate(steps, 100):
            getattr(place, step)()
        index = Index.load(place.output, Colours())
        held = contents(index)
        index.add(place.photos)
        assert set(held) <= set(contents(index))  # adding drops nothing
        index.prune()
        there = contents(Index.build(Colours(), place.photos, image_size=32))
        assert {p: v for p, v in contents(index).items() if os.path.exists(p)} == there
        kept = [p for p in contents(index) if not os.path.exists(p)]
        assert all(os.listdir(os.path.dirname(p)) == [] for p in kept)  # as of a missing disk


def killed_while_adding(output: Path, photos: Path) -> None:
    "An add that dies after the first batch of rows, before photos are noted."

    def work():
        index = Index.load(output, Colours())
        real = index.stored.keep_rows
        index.stored.keep_rows = lambda rows: (real(rows), os.kill(os.getpid(), signal.SIGKILL))
        index.add(photos)

    os.waitpid(forked(work), 0)


def test_two_processes_add_at_random_and_no_row_is_lost(tmp_path):
    output, parts = tmp_path / "my.index", [tmp_path / "a", tmp_path / "b"]
    photo(parts[0] / "first.png", 0, (8, 8))
    Index.build(Colours(), parts[0], image_size=32, path=output)

    def work(part: Path, seed: int):
        index, chance = Index.load(output, Colours()), random.Random(seed)
        for i in range(25):
            photo(part / f"{i}.png", 100 * seed + i, (8, 8))
            time.sleep(chance.random() / 50)
            index.add(part)
            if chance.random() < 0.2:
                index.prune()

    for pid in [forked(lambda p=p, i=i: work(p, i)) for i, p in enumerate(parts, 1)]:
        assert os.waitpid(pid, 0)[1] == 0
    index = Index.load(output)
    assert len(index) == 51
    assert contents(index) == contents(Index.build(Colours(), parts, image_size=32))


def answer_after_a_fork(rank: int, output: Path, query: Path) -> None:
    "As a server does that loads an index, searches once and forks its workers."
    torch.set_num_threads(2)
    index = Index.load(output, open_model(Index.load(output).stored.source)[0])
    expected = index.search(query, 3).table()

    def work():
        signal.alarm(60)
        assert index.search(query, 3).table().equals(expected)
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda _: index.search(query, 3).table(), range(8))
            assert all(answer.equals(expected) for answer in answers)

    assert os.waitpid(forked(work), 0)[1] == 0


def test_a_forked_process_searches(album, checkpoint, tmp_path):
    assert make(album, checkpoint, tmp_path / "my.index") == 0
    in_processes(answer_after_a_fork, tmp_path / "my.index", album / "kind 0" / "0.png")


def test_killed_half_way_the_same_command_goes_on(album, checkpoint, tmp_path, monkeypatch, capsys):
    output, model = tmp_path / "my.index", open_model(checkpoint)[0]
    for i in range(200):
        photo(album / "more" / f"{i}.png", 1000 + i, (8, 8))

    def work():
        model.register_forward_hook(lambda *_: time.sleep(0.3))
        Index.build(model, album, path=output)

    pid, deadline = forked(work), time.time() + 60
    while not output.exists() or len(Rows(output, make=True).hashes()) < 64:
        assert time.time() < deadline
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kept = len(Rows(output).hashes())
    assert 64 <= kept < 230 and len(Index.load(output)) == 0  # a reader sees none of it
    assert make(album, checkpoint, output) == 0
    assert (
        f"{230 - kept} embedded, 0 unchanged, {kept} under a new name, copied or kept"
        in capsys.readouterr().out
    )
    assert make(album, checkpoint, output) == 0  # finished: nothing is left to do
    assert "0 embedded, 230 unchanged" in capsys.readouterr().out


def test_a_search_during_an_add_sees_the_old_or_the_new_photos(album, tmp_path):
    index = Index.build(Colours(), album, image_size=32, path=tmp_path / "my.index")
    old, query = contents(index), index.embeddings[:1].copy()
    for i in range(300):
        photo(album / "a first folder" / f"{i}.png", 1000 + i, (8, 8))
    adding = threading.Thread(
        target=lambda: Index.load(tmp_path / "my.index", Colours()).add(album)
    )
    adding.start()
    states = set()
    while adding.is_alive() or not states:
        found = index.search(query, 400)
        states.add(len(found.photos))
        for row in found.table().itertuples():
            assert row.path not in old or abs(row.similarity - query[0] @ old[row.path][1]) < 1e-3
    adding.join()
    assert states <= {30, 330} and len(index.search(query, 400).photos) == 330


def test_a_writer_waits_for_another_and_goes_on(album, tmp_path):
    output = tmp_path / "my.index"
    index = Index.build(Colours(), album, image_size=32, path=output)
    photo(album / "new.png", 77)
    other = sqlite3.connect(output, check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(2.5, lambda: other.execute("COMMIT")).start()
    assert index.add(album).embedded == 1


def test_index_and_training_see_the_same_photos(tmp_path, checkpoint):
    top, model = tmp_path / "photos", open_model(checkpoint)[0]
    accents = unicodedata.normalize("NFD", "café")
    names = [f"{accents}/1.png", "b/2.gif", "b/3.jfif", "b/4.webp", "b/5.bmp"]
    for i, name in enumerate(names):
        photo(top / "x.png", i).rename(top / "x")
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(top / "x").save(top / name, format="JPEG" if name.endswith("jfif") else None)
    (top / "x").unlink()
    photo(top / "b" / "@eaDir" / "thumb.png", 9)
    photo(top / ".trash" / "old.png", 9)
    os.mkfifo(top / "b" / "pipe.png")
    shutil.copy(top / "b" / "5.bmp", os.fsencode(top) + b"/b/caf\xe9.bmp")
    (top / "b" / "film.xyz").write_text("no photo")
    own, index = OwnPhotos.of(top), Index.build(model, top)
    assert sorted(index.photos.path) == sorted(str(top / path) for path in own.frame.path)
    assert len(index) == 6 and set(index.photos.label) == {"café", "b"}
    assert index.changes.left_out == [f"{top}: {own.left_out}"] and "pipes" in own.left_out
    assert index.search(top / names[0], labels=["café"]).table().label.tolist() == ["café"]


def test_photos_model_and_index_move_together_or_apart(album, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    checkpoint, output = save_model(tmp_path / "run" / "checkpoint.pt", 0), tmp_path / "run" / "i"
    assert make(album, checkpoint, output) == 0
    new = tmp_path / os.fsdecode(b"new disk \xe9")  # a name that is no UTF-8
    new.mkdir()
    for name in ("run", "album"):
        (tmp_path / name).rename(new / name)
    photo = str(new / "album" / "kind 1" / "1.png")
    call = ["search", photo, "--index", str(new / "run" / "i"), "-k", "1", "--json"]
    assert main(call) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["path"] == photo
    (new / "run" / "checkpoint.pt").rename(tmp_path / "elsewhere.pt")
    save_model(new / "run" / "checkpoint.pt", 1)  # another model in its place
    assert main(call) == 2
    assert "made by model" in capsys.readouterr().err
    assert main([*call, "--checkpoint", str(tmp_path / "elsewhere.pt")]) == 0
    (new / "run" / "checkpoint.pt").unlink()
    assert main(call) == 0  # the place is remembered
    (new / "run" / "deep").mkdir()
    (tmp_path / "elsewhere.pt").rename(new / "run" / "deep" / "elsewhere.pt")
    assert main(call) == 0  # and found below the index's folder
    (new / "album").rename(tmp_path / "third")
    assert main(["index", "--photos", str(tmp_path / "third"), "--output", call[3]]) == 0
    assert "0 embedded, 30 unchanged" in capsys.readouterr().out


def test_what_cannot_be_looked_into_or_written_is_told(album, tmp_path, monkeypatch):
    index = Index.build(Colours(), album, path=tmp_path / "my.index", image_size=32)
    shutil.rmtree(album / "kind 0")
    (album / "kind 0").mkdir()
    names = os.listdir

    def closed(folder):
        if "kind 0" in str(folder):
            raise PermissionError("closed")
        return names(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", closed)
        assert index.prune().kept == {str(album / "kind 0"): 10} and len(index) == 30
    monkeypatch.setattr(os, "access", lambda *asked: False)
    with pytest.raises(SeeError, match="new.index: cannot be written .its folder is closed"):
        Index.build(Colours(), album, path=tmp_path / "new.index", image_size=32)


def test_a_folder_asked_for_twice_is_there_once(album, tmp_path):
    (tmp_path / "link").symlink_to(album, target_is_directory=True)
    index = Index.build(Colours(), album, image_size=32)
    before = contents(index)
    for same in (tmp_path / "link", album / "kind 1", [album, album / "kind 2"], tmp_path):
        assert index.add(same).embedded == 0
        assert contents(index) == before


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lambda x: x.flatten(1)[:, :4], "expected unit vectors"),
        (lambda x: x.flatten(1)[:, :4] * float("nan"), "if it is nan"),
        (lambda x: (x, x), "expected one row for each of"),
        (lambda x: x[1:], "expected one row for each of"),
        (lambda x: x, "expected floating-point embeddings (N, D)"),
    ],
)
def test_rows_that_are_none_are_refused(album, rows, words):
    class Model(nn.Module):
        def forward(self, images):
            return rows(images.float())

    with pytest.raises(SeeError) as error:
        Index.build(Model(), album, image_size=32)
    assert words in str(error.value)


def test_rows_in_half_precision_are_of_length_1(album):
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        model = empty_model(Recipe(embedding_size=16, image_size=32, width=4), 3, pretrained=False)
        index = Index.build(model.to(dtype), album)
        np.testing.assert_allclose(np.linalg.norm(index.embeddings, axis=1), 1, atol=1e-6)


def test_a_choice_of_classes_does_not_say_that_a_photo_is_not_there(album):
    index = Index.build(Colours(), album, image_size=32)
    index.stored.note(threshold=0.9999)
    found = index.search(album / "kind 1" / "1.png", 2, labels="kind 2")
    assert found.similarity.max() < 0.9999 and not found.unknown().any()


def test_an_approximate_index_says_what_it_finds(album, checkpoint, tmp_path, capsys):
    output = tmp_path / "my.index"
    assert make(album, checkpoint, output, "--factory", "HNSW32") == 0
    said = capsys.readouterr()
    assert "HNSW32: finds " in said.out and "ms a query, exact search takes" in said.out
    assert "30 photos are few" in said.out
    index = Index.load(output)
    assert index.search(index.embeddings, 30).rows.min() >= 0
    data = bytearray((tmp_path / "my.index.faiss").read_bytes())
    data[-9] ^= 1
    (tmp_path / "my.index.faiss").write_bytes(data)
    with pytest.warns(UserWarning, match="exact search is used instead"):
        assert Index.load(output).state.faster is None
    assert make(album, checkpoint, output, "--factory", "IVF999,Flat") == 2
    assert "faiss cannot make 'IVF999,Flat' of 30 rows" in capsys.readouterr().err
