"Photos of every kind, their hashes, and their cache: wanted by several, killed, damaged, mistaken."

import errno
import io
import os
import signal
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
import torchvision.transforms.v2  # noqa: F401  once, before the forks
from conftest import forked
from PIL import Image

from see_nb.data import cache as cache_module
from see_nb.data import photos as photos_module
from see_nb.data.cache import cache_photos
from see_nb.data.photos import Photos, content_hashes, read_photo
from see_nb.errors import SeeError

N = 30


@pytest.fixture
def photos(tmp_path) -> Photos:
    "Thirty small photos of noise."
    for i in range(N):
        Image.fromarray(
            np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        ).save(tmp_path / f"{i}.png")
    return Photos(tmp_path, [f"{i}.png" for i in range(N)])


def slow_reads(monkeypatch, log):
    "Every decoding takes a moment and leaves a line."
    real = cache_module.read_photo

    def read(*arguments):
        with open(log, "a") as file:
            file.write("decoded\n")
        time.sleep(0.02)
        return real(*arguments)

    monkeypatch.setattr(cache_module, "read_photo", read)


def test_of_three_processes_one_decodes_and_all_read(photos, tmp_path, monkeypatch):
    slow_reads(monkeypatch, tmp_path / "log")

    def work():
        cached = cache_photos(photos, 20, tmp_path / "cache")
        assert all(cached[i].shape == (3, 20, 25) for i in range(N))

    pids = [forked(work) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == N


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(photos, tmp_path, monkeypatch):
    slow_reads(monkeypatch, tmp_path / "log")
    pid = forked(lambda: cache_photos(photos, 20, tmp_path / "cache"))
    while not list((tmp_path / "cache").glob(".*.part.bytes")):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert not list((tmp_path / "cache").glob("photos*.bytes"))
    cached = cache_photos(photos, 20, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(".*.part.bytes"))  # nor what the dead one left
    assert all(torch.equal(cached[i], read_photo(photos.folder / f"{i}.png", 20)) for i in range(N))


def test_other_photos_or_sizes_get_a_cache_of_their_own(photos, tmp_path):
    cache = tmp_path / "cache"
    first = cache_photos(photos, 20, cache)
    assert cache_photos(photos, 24, cache).store != first.store
    assert cache_photos(photos, 20, cache, "bilinear").store != first.store
    Image.new("RGB", (50, 40), "red").save(photos.folder / "3.png")
    changed = cache_photos(photos, 20, cache)
    assert changed.store != first.store and changed[3][0].min() == 255


# One photo: every kind of file, and what is no photograph


def ramp(kind, top) -> np.ndarray:
    "A picture that grows brighter to the right, its white at `top`."
    return (np.tile(np.linspace(0, 1, 40), (30, 1)) * top).astype(kind)


@pytest.mark.parametrize(
    "name, pixels",
    [
        ("float to 1.tif", ramp(np.float32, 1)),
        ("float to 255.tif", ramp(np.float32, 255)),
        ("sixteen bits.tif", ramp(np.uint16, 65535)),
        ("sixteen bits.png", ramp(np.uint16, 65535)),
        ("eight bits.png", ramp(np.uint8, 255)),
    ],
)
def test_every_depth_keeps_its_greys(tmp_path, name, pixels):
    Image.fromarray(pixels).save(tmp_path / name)
    photo = read_photo(tmp_path / name)
    expected = torch.linspace(0, 255, 40).expand(3, 30, 40)
    assert (photo.float() - expected).abs().max() <= 1.5


def test_sixteen_bits_of_a_portable_grey_map(tmp_path):
    pixels = ramp(np.uint16, 65535)
    (tmp_path / "a.pgm").write_bytes(b"P5 40 30 65535\n" + pixels.astype(">u2").tobytes())
    assert read_photo(tmp_path / "a.pgm")[0, 0, [0, 39]].tolist() == [0, 255]


BAD = {
    "float below 0.tif": ramp(np.float32, -3),
    "float above 255.tif": ramp(np.float32, 1000),
    "no number.tif": ramp(np.float32, np.nan),
    "32 bits.tif": ramp(np.int32, 255),
}


@pytest.mark.parametrize("name", BAD)
def test_a_white_that_is_not_known_is_refused_instead_of_black(tmp_path, name):
    Image.fromarray(BAD[name]).save(tmp_path / name)
    with pytest.raises(SeeError, match=f"{name}: expected .* Save it with 8 or 16 bits"):
        read_photo(tmp_path / name)


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000), (1, 10_000), (10_000, 1)])
def test_a_picture_too_large_or_too_thin_is_not_decoded(tmp_path, size, monkeypatch):
    header = struct.pack(">2I5B", *size, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    with (
        warnings.catch_warnings(),
        pytest.raises(SeeError, match="bomb.png.*(million pixels|ratio)"),
    ):
        warnings.simplefilter("ignore")  # Pillow's own, of the same thing
        read_photo(tmp_path / "bomb.png")


def test_what_is_no_file_is_told(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    (tmp_path / "empty.jpg").touch()
    for name in ("folder.jpg", "itself.jpg", "empty.jpg", "none.jpg", "nul\0.jpg", "x" * 400):
        with pytest.raises(SeeError, match="cannot be read") as error:
            read_photo(tmp_path / name)
        assert "\n" not in str(error.value)


# Hashes: content decides, and files are not read again


@pytest.fixture
def old(tmp_path, monkeypatch) -> Photos:
    "Twenty photos that count as changed long ago."
    monkeypatch.setattr(photos_module, "RECENT", 0)
    folder = tmp_path / "old"
    folder.mkdir()
    for i in range(20):
        Image.new("RGB", (30, 20), (i, 0, 0)).save(folder / f"{i}.bmp")
    return Photos(folder, [f"{i}.bmp" for i in range(20)], tmp_path / "memo")


def fresh(photos: Photos) -> Photos:
    "The same photos, as a new process opens them."
    return Photos(photos.folder, photos.files, photos.memo)


def test_files_are_read_once_for_their_hashes(old, monkeypatch):
    reads, real, recent = [], photos_module.hash_file, 2_000_000_000
    monkeypatch.setattr(photos_module, "hash_file", lambda path: reads.append(path) or real(path))
    first = old.hashes
    assert len(reads) == 20 and len(set(first)) == 20
    assert fresh(old).hashes == first and len(reads) == 20
    monkeypatch.setattr(photos_module, "RECENT", recent)
    Image.new("RGB", (30, 20), "blue").save(old.folder / "3.bmp")
    changed = fresh(old).hashes
    assert [i for i in range(20) if changed[i] != first[i]] == [3] and len(reads) == 21
    assert fresh(old).hashes == changed and len(reads) == 22  # changed just now: read again


def test_a_photo_replaced_in_place_with_its_old_time_is_another(old, tmp_path):
    path = old.folder / "3.bmp"
    first, before = cache_photos(old, 16, tmp_path / "cache"), path.stat()
    Image.new("RGB", (30, 20), "blue").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = cache_photos(fresh(old), 16, tmp_path / "cache")
    assert first[3][:, 0, 0].tolist() == [3, 0, 0] and second[3][:, 0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"3.bmp": 5, "4.bmp": [1, 2, 3, "x"]}'])
def test_a_damaged_memo_is_made_anew(old, damage):
    first = old.hashes
    (memo,) = old.memo.glob("hashes-*.json")
    memo.write_bytes(damage)
    assert fresh(old).hashes == first


def test_hashes_need_no_place_to_be_kept(old, tmp_path):
    (tmp_path / "file").touch()
    nowhere = Photos(old.folder, old.files, tmp_path / "file" / "memo")
    assert nowhere.hashes == old.hashes


def test_a_missing_photo_has_no_hash(old):
    (old.folder / "3.bmp").unlink()
    with pytest.raises(SeeError, match="3.bmp cannot be read .No such file"):
        content_hashes(old.folder, old.files, old.memo)


# The cache: no folder gets another folder's pixels


def test_two_folders_with_files_of_one_name_and_size_keep_their_own_pixels(tmp_path):
    for name, colour in (("one", (255, 0, 0)), ("other", (0, 0, 255))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 20), colour).save(tmp_path / name / "0.bmp")
    for name, colour in (("one", [255, 0, 0]), ("other", [0, 0, 255]), ("one", [255, 0, 0])):
        photos = Photos(tmp_path / name, ["0.bmp"], tmp_path / "memo")
        cached = cache_photos(photos, 16, tmp_path / "cache")
        assert cached[0][:, 0, 0].tolist() == colour


def test_the_same_photos_in_another_folder_find_the_cache(old, tmp_path):
    first = cache_photos(old, 16, tmp_path / "cache")
    moved = old.folder.rename(tmp_path / "moved")
    second = cache_photos(Photos(moved, old.files, old.memo), 16, tmp_path / "cache")
    assert second.store == first.store and second.identity() == first.identity()
    assert first.select([3]).identity() != first.select([4]).identity()
    larger = cache_photos(Photos(moved, old.files), 17, tmp_path / "cache")
    assert larger.hashes == second.hashes and larger.identity() != second.identity()


@pytest.mark.parametrize("part", ["npy", "bytes"])
@pytest.mark.parametrize("damage", ["empty", "short", "longer", "noise", "folder"])
def test_a_damaged_cache_is_made_anew_or_told(old, tmp_path, part, damage):
    cached = cache_photos(old, 16, tmp_path / "cache")
    path = cached.store.with_suffix(f".{part}")
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
        with pytest.raises(SeeError, match="a folder of that name is in the way"):
            cache_photos(fresh(old), 16, tmp_path / "cache")
        return
    noise = bytes(np.random.default_rng(0).integers(0, 256, len(content), dtype=np.uint8))
    damaged = {"empty": b"", "short": content[:-5], "longer": content + b"12345", "noise": noise}
    path.write_bytes(damaged[damage])
    again = cache_photos(fresh(old), 16, tmp_path / "cache")
    if (part, damage) == ("bytes", "noise"):  # of the right size: noticed when it is read
        with pytest.raises(SeeError, match="0.bmp is damaged in .*Delete that file"):
            again[0]
    else:
        assert all(
            torch.equal(again[i], read_photo(old.folder / f"{i}.bmp", 16)) for i in range(20)
        )


def test_a_flipped_shape_in_the_index_is_noticed(old, tmp_path):
    cached = cache_photos(old, 16, tmp_path / "cache")
    rows = np.load(cached.store.with_suffix(".npy"))
    rows[:, :2] = rows[:, 1::-1]  # height and width: the offsets still fit
    np.save(cached.store.with_suffix(".npy"), rows)
    with pytest.raises(SeeError, match="0.bmp is damaged in"):
        cache_photos(fresh(old), 16, tmp_path / "cache")[0]


def test_a_full_disk_leaves_no_cache(old, tmp_path, monkeypatch):
    real = cache_module.read_photo

    def full(path, *arguments):
        if path.name == "7.bmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments)

    monkeypatch.setattr(cache_module, "read_photo", full)
    with pytest.raises(SeeError, match="the disk is full"):
        cache_photos(old, 16, tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "resize, interpolation, message",
    [
        (0, "bicubic", "resize: expected"),
        (-5, "bicubic", "resize: expected"),
        (9, "cubic", "bicubic"),
    ],
)
def test_wrong_arguments_of_the_cache_are_told(old, tmp_path, resize, interpolation, message):
    with pytest.raises(SeeError, match=message):
        cache_photos(old, resize, tmp_path / "cache", interpolation)


def test_a_photo_that_changes_while_it_is_decoded_leaves_no_cache(old, tmp_path, monkeypatch):
    real = cache_module.read_photo

    def read(path, *arguments):
        if path.name == "7.bmp":
            Image.new("RGB", (30, 20), "blue").save(old.folder / "3.bmp")
        return real(path, *arguments)

    monkeypatch.setattr(cache_module, "read_photo", read)
    with pytest.raises(SeeError, match="changed while they were read. Repeat"):
        cache_photos(old, 16, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))
    monkeypatch.setattr(cache_module, "read_photo", real)
    assert cache_photos(old, 16, tmp_path / "cache")[3][:, 0, 0].tolist() == [0, 0, 255]


def test_a_picture_in_memory_is_read_as_its_file_is(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.save(file, "PNG")
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    grey = np.full((20, 30), 128, np.uint8)
    same = [file, file.getvalue(), image, pixels, pixels.transpose(2, 0, 1), expected]
    same += [pixels / 255, pixels.astype(np.float16), pixels.astype(np.uint16) * 257]
    for picture in same:
        torch.testing.assert_close(read_photo(picture), expected)
    for picture in (grey, grey[..., None], grey[None], grey / 255, Image.fromarray(grey)):
        torch.testing.assert_close(read_photo(picture), torch.full((3, 20, 30), 128).byte())
    for wrong in (np.zeros(8), np.zeros((2, 20, 30)), np.zeros((0, 4, 3)), grey - 200.0, None):
        with pytest.raises(SeeError, match="^photo: the picture in memory"):
            read_photo(wrong)
