"Copies among photos and photos that are damaged, from the command line to the row of a training."

import json
import re

import numpy as np
import pytest
from PIL import Image

TINY = "--backbone conv4 --width 4 --image-size 32 --batch-size 8 --epochs 2 --embedding-size 16"


@pytest.fixture
def album(tmp_path, monkeypatch):
    "Twelve classes of four photos and a smaller copy of the first; c00 and c02 share a photo."
    monkeypatch.setenv("SEE_NB_DATA", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    for c in range(12):
        folder = tmp_path / "album" / f"c{c:02}"
        folder.mkdir(parents=True)
        for i in range(4):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            coarse.resize((80, 60)).save(folder / f"{i}.png")
        Image.open(folder / "0.png").resize((60, 45)).save(folder / "small.jpg", quality=60)
    first, second = tmp_path / "album" / "c00" / "1.png", tmp_path / "album" / "c02" / "same.png"
    second.write_bytes(first.read_bytes())
    return tmp_path / "album"


def test_copies_are_counted_listed_and_drawn(see_nb_command, album, tmp_path):
    (album / "c03" / "bad.jpg").write_bytes(b"no photo")
    wanted = ("--csv", tmp_path / "pairs.csv", "--pictures", tmp_path / "pairs.png")
    done = see_nb_command("duplicates", album, *wanted)
    assert done.returncode == 0, done.stderr
    assert "62 photos, pairs of copies: 1 exact, 12 near" in done.stdout
    assert "left out: photo: " in done.stderr and "c03/bad.jpg cannot be read" in done.stderr
    rows = (tmp_path / "pairs.csv").read_text().splitlines()
    assert rows[1] == "c00/1.png,c02/same.png,1.0,True" and len(rows) == 14
    assert Image.open(tmp_path / "pairs.png").width > 300
    assert see_nb_command("duplicates", album, *wanted).returncode == 0  # they are its own
    (tmp_path / "pairs.csv").write_text("mine")
    again = see_nb_command("duplicates", album, *wanted)
    assert again.returncode == 2 and "pairs.csv: is there, and see-nb did not" in again.stderr
    other = see_nb_command("duplicates", album, "--pictures", tmp_path / "pairs.xyz")
    assert other.returncode == 2 and "pairs.xyz: expected a name that ends in .png" in other.stderr
    none = see_nb_command("duplicates", album, "--threshold", "2")
    assert none.returncode == 2 and "threshold: expected a cosine" in none.stderr


def test_a_training_names_all_damaged_photos_goes_on_without_them_and_warns_of_copies(
    see_nb_command, album, tmp_path
):
    for path in ("c02/bad.jpg", "c07/bad.jpg"):
        (album / path).write_bytes(b"no photo")
    run = tmp_path / "run"
    train = ("train", "--dataset", "folder", "--root", album, "--output", run, *TINY.split())
    train += ("--validation", "0")
    done = see_nb_command(*train)
    assert done.returncode == 2 and "2 of 63 photos cannot be read." in done.stderr
    rows = (run / "damaged.csv").read_text().splitlines()
    assert sorted(row.split(",")[0] for row in rows) == ["c02/bad.jpg", "c07/bad.jpg", "path"]
    done = see_nb_command(*train, "--skip-damaged")
    assert done.returncode == 0, done.stderr
    assert "They are left out" in done.stderr and "report with pictures" in done.stdout
    (row,) = map(json.loads, (run / "results.jsonl").read_text().splitlines())
    n_test = row["n_test"]
    assert n_test + row["n_train"] == 61
    themselves = rf"1[0-4] of the {n_test} test photos have a copy among themselves"
    assert re.search(themselves, done.stderr)
    shown = f"1 of the {n_test} test photos have a copy among the training photos (c02/same.png)"
    assert shown in done.stderr  # c00 trains, c02 tests
    shown = see_nb_command("cache")
    assert f"photos {60:>12} files" in shown.stdout  # two of the 61 are one
    assert see_nb_command("cache", "--clear").returncode == 0
    assert f"photos {0:>12} files" in see_nb_command("cache").stdout
