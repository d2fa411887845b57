"Each data set on a miniature of its true layout, and every kind of damage on disk."

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photo
from scipy.io import savemat

from see_nb.data import benchmarks, drawings
from see_nb.data.benchmarks import BENCHMARKS
from see_nb.data.datasets import (
    check_dataset,
    data_root,
    dataset_states,
    load_dataset,
    same_data,
)
from see_nb.data.photos import cache_photos, hash_file
from see_nb.errors import SeeError
from see_nb.training.splits import readable

# Miniatures: true file names and list formats, a few classes and photos, sizes patched to match


def cub(root: Path) -> dict:
    folder = root / "CUB_200_2011"
    names = [f"{i:03d}.Bird_{i}" for i in range(1, 201)]
    paths = [f"{names[c - 1]}/Bird_{c:04d}_{k}.jpg" for c in (1, 2, 26, 101, 150) for k in range(3)]
    for i, path in enumerate(paths):
        photo(folder / "images" / path, (i * 15, 100, 100))
    (folder / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (folder / "images.txt").write_text("".join(f"{i} {path}\n" for i, path in enumerate(paths, 1)))
    (folder / "image_class_labels.txt").write_text(
        "".join(f"{i} {int(path[:3])}\n" for i, path in enumerate(paths, 1))
    )
    return {"train": (3, 9), "test": (2, 6)}


CARS = [1, 1, 98, 98, 98, 99, 99, 196]  # class of each photo


def structs(rows: list[dict]) -> np.ndarray:
    array = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row.values())
    return array


BOX = {"bbox_x1": 1, "bbox_y1": 1, "bbox_x2": 20, "bbox_y2": 18}
CAR_NAMES = np.array([f"Make Model {i} 2012" for i in range(1, 197)], dtype=object)


def cars(root: Path) -> dict:
    folder = root / "cars196"
    rows = [
        {"relative_im_path": f"car_ims/{i:06d}.jpg", **BOX, "class": c, "test": i % 2}
        for i, c in enumerate(CARS, 1)
    ]
    for row in rows:
        photo(folder / row["relative_im_path"])
    savemat(folder / "cars_annos.mat", {"annotations": structs(rows), "class_names": CAR_NAMES})
    return {"train": (2, 5), "test": (2, 3)}


def sop(root: Path) -> dict:
    folder = root / "Stanford_Online_Products"
    for split, first in (("train", 1), ("test", 3)):
        lines = ["image_id class_id super_class_id path"]
        for c in (first, first + 1):
            for k in range(2):
                path = f"bicycle_final/11108512{c}871_{k}.JPG"
                photo(folder / path)
                lines.append(f"{len(lines)} {c} 1 {path}")
        (folder / f"Ebay_{split}.txt").write_text("\n".join(lines) + "\n")
    return {"train": (2, 4), "test": (2, 4)}


def inshop(root: Path, eval_in: str = "inshop/Eval", images_in: str = "inshop/Img") -> dict:
    items = {2: "train train", 7: "train", 80: "query gallery", 81: "gallery query gallery"}
    rows = [
        (f"img/WOMEN/Dresses/id_{item:08d}/02_{k}_front.jpg", f"id_{item:08d}", status)
        for item, statuses in items.items()
        for k, status in enumerate(statuses.split(), 1)
    ]
    for path, _, _ in rows:
        photo(root / images_in / path)
    (root / eval_in).mkdir(parents=True, exist_ok=True)
    text = "".join(f"{path:<72}{item:<22}{status}\n" for path, item, status in rows)
    (root / eval_in / "list_eval_partition.txt").write_text(
        f"{len(rows)}\nimage_name item_id evaluation_status\n{text}"
    )
    return {"train": (2, 3), "query": (2, 2), "gallery": (2, 3)}


MINIATURES = {"cub200": cub, "cars196": cars, "sop": sop, "inshop": inshop}


@pytest.fixture
def mini(tmp_path, monkeypatch):
    "Write a miniature, and let its sizes be the published ones."

    def write(name, **options) -> Path:
        sizes, sums = MINIATURES[name](tmp_path, **options), {}
        if name == "cars196":
            sums = {"cars_annos.mat": hash_file(tmp_path / "cars196" / "cars_annos.mat", "md5")}
        small = replace(BENCHMARKS[name], sizes=sizes, list_md5=sums)
        monkeypatch.setitem(benchmarks.BENCHMARKS, name, small)
        return tmp_path

    return write


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, *_, **__):
        raise OSError(f"no network for {url}")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)


def first_photo(root: Path, name: str) -> Path:
    "The first training photo."
    images = load_dataset(name, root).images
    return images.folder / images.files[0]


# Complete


@pytest.mark.parametrize("name", MINIATURES)
def test_a_complete_benchmark_opens(mini, name):
    root = mini(name)
    train, test = (load_dataset(name, root, split) for split in ("train", "test"))
    sizes = BENCHMARKS[name].sizes
    assert (len(train.classes), len(train)) == sizes["train"]
    assert (len(test.classes), len(test)) == sizes.get("test", sizes.get("query"))
    assert not set(train.classes) & set(test.classes)
    assert sorted(set(train.labels.tolist())) == list(range(len(train.classes)))
    assert train.images[0].shape == (3, 20, 24)
    assert dataset_states(root)[name] == "there and complete"
    report = check_dataset(name, root)
    assert f"train: {sizes['train'][0]} of {sizes['train'][0]} classes" in report
    assert "photos decode" in report
    if name == "cub200":
        for file, label in zip(train.images.files, train.labels.tolist(), strict=True):
            assert file.split("/")[1] == train.classes[label]


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("cub200", "CUB_200_2011", "cub_200/CUB_200_2011"),
        ("cars196", "cars196", "stanford_cars"),
        ("sop", "Stanford_Online_Products", "SOP"),
        ("inshop", "inshop", "In-Shop/In-shop Clothes Retrieval Benchmark"),
    ],
)
def test_the_folder_names_of_the_authors_count_too(mini, name, ours, theirs):
    root = mini(name)
    (root / theirs).parent.mkdir(exist_ok=True)
    (root / ours).rename(root / theirs)
    assert dataset_states(root)[name] == "there and complete"
    assert load_dataset(name, root).images.folder == root / theirs


@pytest.mark.parametrize(
    "eval_in, images_in",
    [
        ("inshop", "inshop"),
        ("inshop/Eval", "inshop"),
        (f"inshop/{benchmarks.DRIVE}/Eval", f"inshop/{benchmarks.DRIVE}/Img"),
        (f"{benchmarks.DRIVE}/Eval", f"{benchmarks.DRIVE}/Img"),
    ],
)
def test_queries_of_inshop_come_with_their_gallery(mini, eval_in, images_in):
    query = load_dataset("inshop", mini("inshop", eval_in=eval_in, images_in=images_in), "test")
    assert query.classes == query.gallery.classes == ["id_00000080", "id_00000081"]
    assert (query.labels.tolist(), query.gallery.labels.tolist()) == ([0, 1], [0, 1, 1])
    assert not set(query.images.files) & set(query.gallery.images.files)
    for part in (query, query.gallery):
        for file, label in zip(part.images.files, part.labels.tolist(), strict=True):
            assert f"/{part.classes[label]}/" in file


# Damage


@pytest.mark.parametrize("name", MINIATURES)
def test_a_missing_photo_is_named(mini, name):
    root = mini(name)
    lost = first_photo(root, name)
    lost.unlink()
    for split in ("train", "test"):  # a hole anywhere: the whole set is refused
        with pytest.raises(
            ValueError,
            match=f"1 of .* listed images are missing .*{lost.name}.*allow_incomplete=True",
        ):
            load_dataset(name, root, split)
    with pytest.raises(SeeError, match=lost.name):
        check_dataset(name, root, decode=False)
    assert "listed images are missing" in dataset_states(root)[name]
    whole = BENCHMARKS[name].sizes["train"]
    with pytest.warns(
        UserWarning, match=f"train: . of {whole[0]} classes, {whole[1] - 1} of {whole[1]} images"
    ):
        assert len(load_dataset(name, root, allow_incomplete=True)) == whole[1] - 1


def test_a_class_without_photos_is_left_out_and_an_empty_split_refused(mini):
    root = mini("cub200")
    shutil.rmtree(root / "CUB_200_2011" / "images" / "002.Bird_2")
    with pytest.warns(UserWarning, match="train: 2 of 3 classes"):
        train = load_dataset("cub200", root, allow_incomplete=True)
    assert train.classes == ["001.Bird_1", "026.Bird_26"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for folder in ("101.Bird_101", "150.Bird_150"):
        shutil.rmtree(root / "CUB_200_2011" / "images" / folder)
    with (
        pytest.warns(UserWarning),
        pytest.raises(SeeError, match="no image of the test split is in"),
    ):
        load_dataset("cub200", root, "test", allow_incomplete=True)


def test_a_query_class_without_gallery_is_left_out(mini):
    root = mini("inshop")
    (root / "inshop/Img/img/WOMEN/Dresses/id_00000080/02_2_front.jpg").unlink()
    with pytest.warns(UserWarning, match="gallery: 1 of 2 classes, 2 of 3 images"):
        query = load_dataset("inshop", root, "test", allow_incomplete=True)
    assert query.classes == query.gallery.classes == ["id_00000081"]
    assert query.labels.tolist() == [0]


def test_without_the_damaged_photos_queries_and_gallery_keep_the_same_classes(mini):
    root = mini("inshop")
    (root / "inshop/Img/img/WOMEN/Dresses/id_00000080/02_2_front.jpg").write_text("no photo")
    test, damaged = load_dataset("inshop", root, "test"), {}
    left = readable(test, damaged)
    assert list(damaged) == ["Img/img/WOMEN/Dresses/id_00000080/02_2_front.jpg"]
    assert left.classes == left.gallery.classes == ["id_00000081"]
    assert (left.labels.tolist(), left.gallery.labels.tolist()) == ([0], [0, 0])
    assert all("id_00000081" in file for file in left.images.files + left.gallery.images.files)


def test_damaged_annotations_are_told(mini, monkeypatch):
    root = mini("cars196")
    monkeypatch.setitem(BENCHMARKS, "cars196", replace(BENCHMARKS["cars196"], list_md5={}))
    (root / "cars196" / "cars_annos.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut short")
    with pytest.raises(SeeError, match="cars196: the lists in .*cars196 are damaged"):
        load_dataset("cars196", root)


SOP, CUB = "Stanford_Online_Products/Ebay_", "CUB_200_2011/image_class_labels.txt"
INSHOP = "inshop/Eval/list_eval_partition.txt"
LISTS = [  # data set, file, what stands there, what instead, what is said
    ("sop", f"{SOP}test.txt", "4 4 1 bicycle_final/111085124871_1.JPG", "", "2 classes, 3 of 4 im"),
    ("sop", f"{SOP}train.txt", "image_id class_id", "id class", "line 1: expected the header"),
    ("sop", f"{SOP}train.txt", "2 1 1 ", "2 1 ", "line 3: expected 4 values"),
    ("sop", f"{SOP}train.txt", "2 1 1 ", "2 1 1 1 ", "line 3: expected 4 values"),
    (
        "sop",
        f"{SOP}train.txt",
        "1871_1",
        "1871_0",
        "expected each photo once, got bicycle_final/111085121871_0",
    ),
    (
        "sop",
        f"{SOP}test.txt",
        "1 3 1 b",
        "1 2 1 b",
        "expected each class in one part once, got 2 more often",
    ),
    ("cub200", CUB, "4 2\n", "4 two\n", "cub200: the lists in .* are damaged .*two"),
    ("cub200", CUB, "4 2\n", "4 999\n", "train: 3 of 3 classes, 8 of 9 images"),
    ("cub200", CUB, "4 2\n", "", "cub200: the lists in .* are damaged .*KeyError: '4'"),
    ("inshop", INSHOP, "item_id", "item", "line 2: expected the header"),
    ("inshop", INSHOP, "query\n", "probe\n", "line 6: expected train, query or gallery"),
]


@pytest.mark.parametrize("name, file, old, new, message", LISTS)
def test_a_damaged_list_is_told_with_file_and_line(mini, name, file, old, new, message):
    root = mini(name)
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))
    with pytest.raises(SeeError, match=message) as error:
        load_dataset(name, root)
    assert str(root) in str(error.value) and dataset_states(root)[name] in str(error.value)


# Archives


def packed(root: Path, name: str, monkeypatch) -> Path:
    "The official archive of a miniature, in place of its folder."
    archive = root / BENCHMARKS[name].archive.file
    folder = root / BENCHMARKS[name].folders[0]
    if archive.suffix == ".zip":
        shutil.make_archive(str(archive.with_suffix("")), "zip", root, folder.name)
    else:
        with tarfile.open(archive, "w:gz") as content:
            content.add(folder, folder.name)
    shutil.rmtree(folder)
    publish(name, archive, monkeypatch)
    return archive


def publish(name: str, archive: Path, monkeypatch) -> None:
    "Let the sum of an archive be the published one."
    official = replace(BENCHMARKS[name].archive, md5=hash_file(archive, "md5"))
    monkeypatch.setitem(benchmarks.BENCHMARKS, name, replace(BENCHMARKS[name], archive=official))


@pytest.mark.parametrize("name", ["cub200", "sop"])
def test_an_archive_in_the_root_is_unpacked_on_first_use(mini, monkeypatch, name):
    root = mini(name)
    archive = packed(root, name, monkeypatch)
    assert f"{name}: it is not unpacked in" in dataset_states(root)[name]
    with pytest.raises(SeeError, match="it is not unpacked in"):
        check_dataset(name, root)
    assert not (root / BENCHMARKS[name].folders[0]).exists()  # looking changes nothing
    assert len(load_dataset(name, root)) == BENCHMARKS[name].sizes["train"][1]
    archive.unlink()  # it is needed once
    assert len(load_dataset(name, root, "test")) == BENCHMARKS[name].sizes["test"][1]


def test_photo_archives_beside_the_lists_are_unpacked(mini, monkeypatch):
    root = mini("cars196")
    with tarfile.open(root / "cars196" / "car_ims.tgz", "w:gz") as content:
        content.add(root / "cars196" / "car_ims", "car_ims")
    shutil.rmtree(root / "cars196" / "car_ims")
    publish("cars196", root / "cars196" / "car_ims.tgz", monkeypatch)
    assert len(load_dataset("cars196", root)) == 5
    mini("inshop")
    shutil.make_archive(str(root / "inshop" / "Img" / "img"), "zip", root / "inshop" / "Img", "img")
    shutil.rmtree(root / "inshop" / "Img" / "img")
    assert len(load_dataset("inshop", root, "test").gallery) == 3


def test_a_wrong_checksum_is_told_and_nothing_deleted(mini, monkeypatch):
    root = mini("cub200")
    archive = packed(root, "cub200", monkeypatch)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    published = BENCHMARKS["cub200"].archive.md5
    there = hash_file(archive, "md5")
    with pytest.raises(SeeError, match=f"expected the MD5 {published}, got {there}"):
        load_dataset("cub200", root)
    assert archive.read_bytes() == content and not (root / "CUB_200_2011").exists()


def test_an_archive_without_published_checksum_that_is_cut_short_leaves_nothing(mini):
    root = mini("inshop")
    shutil.make_archive(str(root / "inshop" / "img"), "zip", root / "inshop" / "Img", "img")
    shutil.rmtree(root / "inshop" / "Img")
    archive = root / "inshop" / "img.zip"
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(SeeError, match="cannot be made. .*img.zip: cannot be unpacked .BadZipFile"):
        load_dataset("inshop", root)
    assert not (root / "inshop" / "img").exists() and not (root / "inshop" / ".img.part").exists()


def test_what_cannot_be_had_says_what_to_put_where(tmp_path):
    for name, message in {
        "cub200": "no network for https://data.caltech.edu.*put the official CUB_200_2011.tgz into",
        "sop": "no network for ftp://cs.stanford.edu.*put the official Stanford_Online_Products.zip into",
        "cars196": "The official links are dead. Put car_ims.tgz",
        "inshop": "It needs an agreement.*Img/img.zip into",
        "omniglot": "no network for .*put the official images_background.zip into",
    }.items():
        with pytest.raises(SeeError, match=message) as error:
            load_dataset(name, tmp_path)
        assert str(tmp_path) in str(error.value)


def test_a_download_that_fails_half_way_is_no_archive(tmp_path, mini, monkeypatch):
    def download(url, folder, filename, md5):
        (Path(folder) / filename).write_bytes(b"half")
        if hash_file(Path(folder) / filename, "md5") != md5:
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    with pytest.raises(SeeError, match="corrupted"):
        load_dataset("cub200", tmp_path)
    assert not (tmp_path / "CUB_200_2011.tgz").exists() and not (tmp_path / "CUB_200_2011").exists()
    mini("cub200")
    whole = packed(tmp_path, "cub200", monkeypatch).rename(tmp_path / "elsewhere")
    monkeypatch.setattr(
        "torchvision.datasets.utils.download_url",
        lambda url, folder, filename, md5: shutil.copy(whole, Path(folder) / filename),
    )
    assert len(load_dataset("cub200", tmp_path)) == 9
    assert not list(tmp_path.glob(".*.part"))


# Where the photos are at hand


@pytest.mark.parametrize("name", ["birds100", "cars196_train", "cub200_2010"])
def test_a_folder_with_a_list_opens_by_its_name(name):
    if not (data_root() / name).is_dir():
        pytest.skip(f"{name} is not in the data root (set SEE_NB_DATA)")
    for split, size in BENCHMARKS[name].sizes.items():
        dataset = load_dataset(name, split=split)
        assert (len(dataset.classes), len(dataset)) == size and dataset.name == name
    assert "test: " in check_dataset(name, decode=False)


# Places


def test_a_root_that_is_no_folder_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place, message in (
        (tmp_path / "file", "there is no folder .*file"),
        (tmp_path / "loop", "there is no folder .*loop"),
        ("~nobody_of_this_name/data", "no such home"),
    ):
        for call in (load_dataset, check_dataset, lambda _, place: dataset_states(place)):
            with pytest.raises(SeeError, match=message):
                call("glyphs", place)
        monkeypatch.setenv("SEE_NB_DATA", str(place))
        with pytest.raises(SeeError, match=message):
            load_dataset("glyphs")
    monkeypatch.setenv("SEE_NB_DATA", str(tmp_path / "nowhere"))
    assert "Drawn on first use" in dataset_states()["glyphs"]


@pytest.fixture
def two_letters(monkeypatch):
    "Glyphs that are drawn in no time."
    pixels = np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28)
    made = pixels, np.array([0, 0, 1, 1]), ["a", "b"]
    monkeypatch.setattr(drawings, "draw_glyphs", lambda: made)


@pytest.mark.parametrize("trouble", ["a folder in the way", "full", "read-only"])
def test_letters_are_drawn_where_they_cannot_be_kept(tmp_path, monkeypatch, two_letters, trouble):
    number = {"full": errno.ENOSPC, "read-only": errno.EROFS}.get(trouble)
    if number:

        def refuse(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(np, "savez", refuse)
    else:
        (tmp_path / "glyphs-v1.npz").mkdir()
    train = load_dataset("glyphs", tmp_path)
    assert len(train) == 2 and not list(tmp_path.glob(".*part*"))


def test_letters_need_matplotlib_and_nothing_else_does(own_kitchen, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SeeError, match=r'matplotlib is not installed. Run: pip install "see-nb'):
        load_dataset("glyphs", own_kitchen)
    assert len(load_dataset("folder", own_kitchen)) == 4


# Is it the same data set?


@pytest.fixture
def own_kitchen(tmp_path) -> Path:
    for i, name in enumerate(("cup", "fork", "knife", "wok")):
        for k in range(2):
            photo(tmp_path / "own" / name / f"{k}.bmp", (60 * i, 100 * k, 0))
    return tmp_path / "own"


CHANGES = {
    "class renamed": lambda f: (f / "cup").rename(f / "mug"),
    "class added": lambda f: photo(f / "a" / "0.bmp"),
    "photo added": lambda f: photo(f / "cup" / "2.bmp"),
    "photo lost": lambda f: (f / "cup" / "1.bmp").unlink(),
    "photo replaced": lambda f: photo(f / "cup" / "1.bmp", (9, 9, 9)),
    "photos exchanged": lambda f: (
        (f / "cup" / "1.bmp").rename(f / "x"),
        (f / "fork" / "1.bmp").rename(f / "cup" / "1.bmp"),
        (f / "x").rename(f / "fork" / "1.bmp"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_data_is_noticed(own_kitchen, change, monkeypatch, tmp_path):
    monkeypatch.setenv("SEE_NB_DATA", str(tmp_path))  # of the hashes
    before = load_dataset("folder", own_kitchen)
    stored = json.loads(json.dumps(before.facts()))
    same_data(stored, load_dataset("folder", own_kitchen))
    CHANGES[change](own_kitchen)
    with pytest.raises(SeeError, match="expected the 'folder' that the training began with, but"):
        same_data(stored, load_dataset("folder", own_kitchen))


def test_the_hash_stays_when_images_are_stored_in_another_way(own_kitchen, tmp_path):
    classes = ["cup", "fork", "knife"]
    train = load_dataset("folder", own_kitchen, train_classes=classes)
    small = train.with_images(cache_photos(train.images, 8, tmp_path / "cache"))
    features = small.with_images(torch.zeros(len(train), 1, 3))
    assert train.image_hash == small.image_hash == features.image_hash
    some = torch.tensor([0, 2])
    assert features.select_classes(some).image_hash == train.select_classes(some).image_hash
    assert features.select_classes(some).image_hash != train.image_hash
    own_kitchen.rename(tmp_path / "moved")
    moved = load_dataset("folder", tmp_path / "moved", train_classes=classes)
    assert moved.image_hash == train.image_hash


def test_loading_needs_no_heavy_libraries():
    code = "import sys, see_nb.data.datasets as d; d.data_root(); print([m for m in "
    code += "('torchvision', 'matplotlib', 'scipy.io', 'faiss', 'timm') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
