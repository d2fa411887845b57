"Photos of every kind, from files and memory; their hashes; their cache: wanted by several, killed, damaged, mistaken, full."

import errno
import io
import os
import signal
import time
import warnings

import numpy as np
import pytest
import torch
import torchvision.transforms.v2  # noqa: F401  once, before the forks
from conftest import empty_png, forked
from PIL import Image

from see_nb.data import photos as photos_module
from see_nb.data.photos import (
    Photos,
    cache_photos,
    cache_sizes,
    check_photos,
    clear_cache,
    content_hashes,
    find_damaged,
    printable,
    read_photo,
)
from see_nb.errors import SeeError

# One photo: every kind of file, and what is no photograph


def ramp(kind, top) -> np.ndarray:
    "A picture that grows brighter to the right, its white at `top`."
    return (np.tile(np.linspace(0, 1, 40), (30, 1)) * top).astype(kind)


GREYS = {
    "float to 1.tif": ramp(np.float32, 1),
    "float to 255.tif": ramp(np.float32, 255),
    "sixteen bits.tif": ramp(np.uint16, 65535),
    "sixteen bits.png": ramp(np.uint16, 65535),
    "sixteen bits.pgm": b"P5 40 30 65535\n" + ramp(np.uint16, 65535).astype(">u2").tobytes(),
    "eight bits.png": ramp(np.uint8, 255),
}


@pytest.mark.parametrize("name", GREYS)
def test_every_depth_keeps_its_greys(tmp_path, name):
    if isinstance(GREYS[name], bytes):
        (tmp_path / name).write_bytes(GREYS[name])
    else:
        Image.fromarray(GREYS[name]).save(tmp_path / name)
    expected = torch.linspace(0, 255, 40).expand(3, 30, 40)
    assert (read_photo(tmp_path / name).float() - expected).abs().max() <= 1.5


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
    empty_png(tmp_path / "bomb.png", *size)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    with (
        warnings.catch_warnings(),
        pytest.raises(SeeError, match="bomb.png.*(pixels|ratio)"),
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
    check_photos(first)
    Image.new("RGB", (30, 20), "blue").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = cache_photos(fresh(old), 16, tmp_path / "cache")
    assert first[3][:, 0, 0].tolist() == [3, 0, 0] and second[3][:, 0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("damage", ["empty", "noise", "one digit"])
def test_a_damaged_memo_is_made_anew(old, damage):
    first = old.hashes
    (memo,) = old.memo.glob("hashes-*.npz")
    content = memo.read_bytes()
    at = content.index(first[3].encode())
    wrong = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    memo.write_bytes({"empty": b"", "noise": b"noise", "one digit": wrong}[damage])
    assert fresh(old).hashes == first


def test_hashes_need_no_place_to_be_kept(old, tmp_path):
    (tmp_path / "file").touch()
    nowhere = Photos(old.folder, old.files, tmp_path / "file" / "memo")
    assert nowhere.hashes == old.hashes


def test_a_missing_photo_has_no_hash_and_is_found_with_all_others_that_are_damaged(old, tmp_path):
    (old.folder / "3.bmp").unlink()
    (old.folder / "7.bmp").write_bytes((old.folder / "7.bmp").read_bytes()[:60])
    hashes = content_hashes(old.folder, old.files, old.memo)
    assert hashes[3] == "" and len(set(hashes)) == 20
    for photos in (old, cache_photos(old, 16, tmp_path / "cache")):
        assert list(find_damaged(photos)) == [3, 7]
        with pytest.raises(SeeError, match="2 of 20 photos cannot be read. .*3.bmp.*7.bmp"):
            check_photos(photos, tmp_path / "damaged.csv")
        rows = (tmp_path / "damaged.csv").read_text().splitlines()
        assert rows[0] == "path,reason" and [row[:5] for row in rows[1:]] == ["3.bmp", "7.bmp"]


# The cache: no photo gets another photo's pixels


def right(cached, n=20) -> bool:
    "Whether every photo comes out as its file holds it."
    whole = [read_photo(cached.folder / file, *cached.made) for file in cached.files[:n]]
    return all(torch.equal(cached[i], pixels) for i, pixels in enumerate(whole))


@pytest.fixture
def decoded(monkeypatch) -> list:
    "Which photos are decoded."
    real, seen = photos_module.read_photo, []
    monkeypatch.setattr(photos_module, "read_photo", lambda *a: seen.append(a[0].name) or real(*a))
    return seen


def test_photos_are_decoded_once_wherever_they_lie(old, tmp_path, decoded):
    check_photos(cache_photos(old, 16, tmp_path / "cache"))
    assert len(decoded) == 20
    moved = Photos(old.folder.rename(tmp_path / "moved"), old.files, old.memo)
    again = cache_photos(moved, 16, tmp_path / "cache")
    assert [again[i].shape for i in range(20)] and len(decoded) == 20 and right(again)
    for other in (cache_photos(moved, 17, tmp_path / "cache"), again.select([3])):
        assert other.identity() != again.identity()
    assert again.select([3]).identity() != again.select([4]).identity()


def test_of_several_processes_all_read_the_right_pixels_and_a_kill_costs_one_photo(old, tmp_path):
    def work(slow=0):
        real = photos_module.read_photo
        photos_module.read_photo = lambda *a: time.sleep(slow) or real(*a)
        cached = cache_photos(old, 16, tmp_path / "cache")
        check_photos(cached)
        assert all(cached[i].shape == (3, 16, 24) for i in range(20))

    old.hashes  # noqa: B018  once, before the forks
    killed = forked(lambda: work(0.2))
    while not list((tmp_path / "cache").glob("photos/*/*/[!.]*.npz")):
        time.sleep(0.01)
    os.kill(killed, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(killed, 0)[1])
    kept = list((tmp_path / "cache").glob("photos/*/*/[!.]*.npz"))
    assert 0 < len(kept) < 20
    pids = [forked(work) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert right(cache_photos(old, 16, tmp_path / "cache"))


@pytest.mark.parametrize("damage", ["empty", "short", "longer", "noise", "folder", "full"])
def test_a_damaged_or_full_cache_gives_the_right_pixels(old, tmp_path, damage, monkeypatch):
    cached = cache_photos(old, 16, tmp_path / "cache")
    check_photos(cached)
    content = cached.place(3).read_bytes()
    noise = bytes(np.random.default_rng(0).integers(0, 256, len(content), dtype=np.uint8))
    damages = {"empty": b"", "short": content[:-5], "longer": b"12345" + content[:-9]}
    cached.place(3).unlink()
    if damage == "folder":
        cached.place(3).mkdir()
    elif damage == "full":
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(full))
    else:
        cached.place(3).write_bytes({**damages, "noise": noise}[damage])
    again = cache_photos(fresh(old), 16, tmp_path / "cache")
    assert right(again)


def test_the_cache_keeps_its_limit(old, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "cache"
    first = cache_photos(old, 16, cache)
    check_photos(first)
    files, size = cache_sizes(cache)["photos"]
    assert files == 20
    monkeypatch.setenv("SEE_NB_CACHE_GB", str((size + 5.5 * 4 * 17 * 17) / 1e9))
    second = cache_photos(old, 17, cache)  # room for 5 more
    check_photos(second)
    assert right(second) and cache_sizes(cache)["photos"][0] == 25
    monkeypatch.setenv("SEE_NB_CACHE_GB", "0")
    third = cache_photos(old, 18, cache)
    assert right(third) and not third.place(0).exists()
    assert "has room for 0. `see-nb cache` shows" in capsys.readouterr().err
    assert clear_cache(cache) > 0 and cache_sizes(cache)["photos"] == (0, 0)
    for limit in ("much", "nan", "-1"):
        monkeypatch.setenv("SEE_NB_CACHE_GB", limit)
        with pytest.raises(SeeError, match="SEE_NB_CACHE_GB: expected a number of gigabytes"):
            cache_photos(old, 16, cache)


# In memory


def test_names_in_messages_are_one_line_of_text():
    for name, said in {
        "caf\udce9/é 1.png": "caf\\xe9/é 1.png",
        "two\nlines\t.png": "two\\nlines\\t.png",
        "\u2028\x1b[31m": "\\u2028\\x1b[31m",
        "non\xa0breaking 写真": "non\xa0breaking 写真",
    }.items():
        assert printable(name) == said and "\n" not in said


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
