"Bytes, names and folders that nobody thought of: a right result, one line that says why not, or a warning."

import io
import os
import random
import tarfile
import tempfile
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from see_nb.data import photos as photos_module
from see_nb.data.benchmarks import extract
from see_nb.data.folders import OwnPhotos, list_folder
from see_nb.data.photos import Photos, cache_photos, check_photos, read_photo
from see_nb.errors import SeeError

quick = settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def tried(work, *arguments, **options):
    "The result of a call, or nothing if it says in one line what is wrong. Anything else goes on."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work(*arguments, **options)
    except SeeError as error:
        assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 3000
        return None


def damaged(content: bytes, seed: int) -> bytes:
    "Some bytes changed, cut off or put in."
    rng, data = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + rng.randrange(40)] = b""
        elif kind == 2:
            data[place:place] = rng.randbytes(rng.randrange(40))
        elif rng.random() < 0.3:
            del data[place:]
    return bytes(data)


# labels.csv


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory) -> Path:
    "Four classes of two photos."
    folder = tmp_path_factory.mktemp("kitchen")
    for path in PLACES:
        photo(folder / path)
    return folder


PLACES = [f"{name}/{i}.png" for name in ("cup", "fork", "knife", "wok") for i in range(2)]
NAMES = st.sampled_from(
    ["cup", "fork", "cup ", " Cup", "café", "cafe\u0301", "a b", '"x"', "", "\u2028"]
)
NAMES |= st.text(max_size=6)
PATHS = st.sampled_from(
    [*PLACES, "./cup/0.png", "cup\\1.png", "gone.png", "../x.png", "\0", "a" * 300]
)
ROWS = st.lists(
    st.tuples(PATHS, NAMES, st.sampled_from(["train", "test", "TEST", "val", ""])), max_size=9
)


def check_listing(folder: Path, text: bytes) -> None:
    "What was read of a list is what it says, if it was read."
    (folder / "labels.csv").write_bytes(text)
    listing = tried(list_folder, folder)
    if listing is None:
        return
    frame = listing.frame
    lines = [
        line for line in text.decode("utf-8-sig").replace("\r", "\n").split("\n") if line.strip()
    ]
    assert len(frame) == len(lines) - 1  # no row vanishes and none is made
    assert not frame.path.duplicated().any()
    for label in frame.label:
        assert label and label == unicodedata.normalize("NFC", label).strip()
    assert not set(frame.label[frame.split == "train"]) & set(frame.label[frame.split == "test"])
    assert listing.there.tolist() == [os.path.isfile(folder / path) for path in frame.path]


@quick
@given(rows=ROWS, columns=st.sampled_from([2, 3]), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_rows_of_a_list(kitchen, rows, columns, end):
    lines = [",".join(["path", "label", "split"][:columns]), *(",".join(r[:columns]) for r in rows)]
    check_listing(kitchen, end.join(lines).encode("utf-8", "surrogatepass"))


@quick
@given(seed=st.integers(0, 2**32))
def test_any_damage_of_a_list(kitchen, seed):
    lines = ["path,label,split"]
    lines += [f"{path},{path.split('/')[0]},{'train' if path < 'g' else 'test'}" for path in PLACES]
    check_listing(kitchen, damaged("\n".join(lines).encode(), seed))


# Photo files


def encoded(kind: str, **options) -> bytes:
    "A small picture in a file of a kind."
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(options.pop("mode", "RGB")).save(file, kind, **options)
    return file.getvalue()


FILES = {
    "JPEG": encoded(
        "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    ),
    "PNG": encoded("PNG"),
    "16 bits": encoded("PNG", mode="I;16"),
    "GIF": encoded("GIF"),
    "WEBP": encoded("WEBP"),
    "TIFF": encoded("TIFF"),
    "float TIFF": encoded("TIFF", mode="F"),
    "BMP": encoded("BMP"),
    "AVIF": encoded("AVIF"),
    "PPM": encoded("PPM"),
    "TGA": encoded("TGA"),
}


@quick
@given(kind=st.sampled_from(list(FILES)), seed=st.integers(0, 2**32))
def test_any_damage_of_a_photo(kind, seed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo"
        path.write_bytes(damaged(FILES[kind], seed))
        pixels = tried(read_photo, path, 16)
        if pixels is not None:
            assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and len(pixels) == 3
            height, width = pixels.shape[1:]
            assert max(height, width) <= photos_module.LONGEST * min(height, width)


# Folders


def build(folder: Path, tree: dict) -> None:
    "Folders, photos, other files and links."
    for name, what in tree.items():
        path = folder / name
        if isinstance(what, dict):
            path.mkdir(exist_ok=True)
            build(path, what)
        elif what == "photo":
            Image.new("RGB", (8, 6)).save(path, "PNG")
        elif what == "link":
            path.symlink_to(folder)
        elif what == "itself":
            path.symlink_to(path)
        else:
            path.write_bytes(b"words")


FILE_NAMES = st.sampled_from(
    ["1.png", "2.JPG", "3.gif", "4.cr3", "5.txt", ".6.png", "Thumbs.db", "7"]
)
LEAVES = st.sampled_from(["photo", "photo", "photo", "words", "link", "itself"])
FOLDER_NAMES = st.sampled_from(
    ["a", "b", "c ", "C", "Train", "test", ".d", "é", "e\u0301", "__MACOSX"]
)
CLASS = st.dictionaries(FILE_NAMES, LEAVES, max_size=4)
TREE = st.dictionaries(
    FOLDER_NAMES, CLASS | st.dictionaries(FOLDER_NAMES, CLASS, max_size=2), min_size=1, max_size=5
)


@quick
@given(tree=TREE)
def test_any_folder_uses_or_names_every_file(tree):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, tree)
        listing = tried(list_folder, folder)
        if listing is None:
            return
        own = OwnPhotos.of(folder)
        rows = listing.frame[["path", "label"]].to_numpy().tolist()
        assert sorted(rows) == sorted(own.frame.to_numpy().tolist())  # all readers agree
        used = set(listing.frame.path)
        assert listing.there.all() and set(listing.frame.split) == {"train", "test"}
        left = own.found.left_out.get(photos_module.UNREADABLE, [])
        for top, folders, files in os.walk(folder):  # does not follow links
            folders[:] = [f for f in folders if not f.startswith(".") and f != "__MACOSX"]
            for file in files:
                path = (Path(top) / file).relative_to(folder).as_posix()
                hidden = file.startswith(".") or file == "Thumbs.db"
                ending = os.path.splitext(file)[1].lower()
                if hidden or (Path(top) / file).is_symlink():
                    assert path not in used
                elif ending in photos_module.photo_endings():
                    assert path in used
                else:
                    assert path in left


# Archives


def archives() -> dict[str, bytes]:
    "A zip and a tar file of three members."
    members = {"a/1": b"one" * 100, "a/b/2": b"two" * 100, "a/3": b""}
    packed, taped = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with tarfile.open(fileobj=taped, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"a.zip": packed.getvalue(), "a.tar": taped.getvalue()}


ARCHIVES = archives()


@quick
@given(name=st.sampled_from(list(ARCHIVES)), seed=st.integers(0, 2**32))
def test_any_damage_of_an_archive_stays_inside(name, seed):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / name).write_bytes(damaged(ARCHIVES[name], seed))
        tried(extract, root / name, root / "out", 100_000)
        assert sorted(p.name for p in root.iterdir()) in ([name, "out"], [name])
        sizes = [p.stat().st_size for p in (root / "out").rglob("*") if p.is_file()]
        assert sum(sizes) <= 100_000


# Caches


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    "Three photos and their cache."
    folder = tmp_path_factory.mktemp("album")
    for i in range(3):
        photo(folder / f"{i}.png", i, (9, 12))
    check_photos(cache_photos(Photos(folder, ["0.png", "1.png", "2.png"]), 8, folder / "cache"))
    return folder


@settings(quick, max_examples=30)
@given(kind=st.sampled_from(["photos/*/*/*.npz", "hashes*.npz"]), seed=st.integers(0, 2**32))
def test_any_damage_of_a_cache_gives_the_right_pixels(album, kind, seed):
    cache = album / "cache"
    for path in cache.glob(kind):
        path.write_bytes(damaged(path.read_bytes(), seed))
    photos = Photos(album, ["0.png", "1.png", "2.png"])
    cached = cache_photos(photos, 8, cache)
    for i in range(3):
        assert torch.equal(cached[i], read_photo(album / f"{i}.png", 8))
