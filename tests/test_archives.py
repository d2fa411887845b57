"Archives: hostile, damaged, too large, killed half way, wanted by two."

import io
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from see_nb.data.benchmarks import extract, fetch, md5_of
from see_nb.errors import SeeError


def tar_with(path: Path, members: dict[str, bytes], *special: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in special:
            archive.addfile(member)
    return path


def zip_with(path: Path, members: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, content)
    return path


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, linkname
    return member


BAD_ARCHIVES = {
    "tar ..": lambda f: tar_with(f / "a.tgz", {"a/ok": b"1", "a/../../outside": b"1"}),
    "tar absolute": lambda f: tar_with(f / "a.tgz", {"a/ok": b"1", f"{f}/outside": b"1"}),
    "tar symlink": lambda f: tar_with(
        f / "a.tgz", {"a/ok": b"1"}, special("a/link", tarfile.SYMTYPE, "../../outside")
    ),
    "tar absolute symlink": lambda f: tar_with(
        f / "a.tgz", {"a/ok": b"1"}, special("a/link", tarfile.SYMTYPE, "/etc")
    ),
    "tar hard link": lambda f: tar_with(
        f / "a.tgz", {"a/ok": b"1"}, special("a/link", tarfile.LNKTYPE, "../secret")
    ),
    "tar device": lambda f: tar_with(
        f / "a.tgz", {"a/ok": b"1"}, special("a/null", tarfile.CHRTYPE)
    ),
    "zip ..": lambda f: zip_with(f / "a.zip", {"a/ok": b"1", "a/../../outside": b"1"}),
    "zip absolute": lambda f: zip_with(f / "a.zip", {"a/ok": b"1", f"{f}/outside": b"1"}),
    "zip symlink": lambda f: zip_with(f / "a.zip", {"a/link": b"/etc"}, stat.S_IFLNK | 0o777),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_an_archive_that_reaches_outside_is_refused(tmp_path, kind):
    (tmp_path / "secret").write_text("secret")
    archive = BAD_ARCHIVES[kind](tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        ValueError,
        match="expected files inside one folder, got the member|outside the destination|is a special file|absolute path",
    ):
        fetch(tmp_path / "a", archive.name, [tmp_path], md5_of(archive), None, "")
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != ".a.lock"] == before


FETCH = """
import sys, time
from pathlib import Path
from see_nb.data import benchmarks
root, md5, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
extract = benchmarks.extract
def slow(archive, folder, limit):
    extract(archive, folder, limit)
    (root / "begun").touch()
    time.sleep(seconds)
    if seconds < 60:
        with open(root / "count", "a") as file:
            file.write("x")
benchmarks.extract = slow
benchmarks.fetch(root / "birds", "birds.tgz", [root], md5, None, "")
assert sorted(p.name for p in (root / "birds").iterdir()) == ["1", "2"]
"""


def fetch_elsewhere(root: Path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, root, md5_of(root / "birds.tgz"), str(seconds)]
    )


def test_an_extraction_killed_half_way_is_not_taken_for_whole(tmp_path):
    archive = tar_with(tmp_path / "birds.tgz", {"birds/1": b"one", "birds/2": b"two"})
    process = fetch_elsewhere(tmp_path, 60)
    for _ in range(600):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".birds.part" / "birds" / "1").exists() and not (tmp_path / "birds").exists()
    (tmp_path / ".birds.part" / "birds" / "3").touch()
    fetch(tmp_path / "birds", archive.name, [tmp_path], md5_of(archive), None, "")
    assert sorted(p.name for p in (tmp_path / "birds").iterdir()) == ["1", "2"]
    assert not (tmp_path / ".birds.part").exists()


def test_two_processes_unpack_once(tmp_path):
    tar_with(tmp_path / "birds.tgz", {"birds/1": b"one", "birds/2": b"two"})
    processes = [fetch_elsewhere(tmp_path, 1) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert (tmp_path / "count").read_text() == "x"


def test_a_good_archive_unpacks_as_it_is(tmp_path):
    for make, name in ((tar_with, "a.tgz"), (zip_with, "a.zip")):
        extract(
            make(tmp_path / name, {"a/b/1": b"one", "a/2": b"two"}),
            tmp_path / name.replace(".", "_"),
        )
        assert (tmp_path / name.replace(".", "_") / "a" / "b" / "1").read_bytes() == b"one"


# Too large, or no archive at all


def zeros(path: Path, size: int) -> Path:
    "An archive that unpacks to much more than it is."
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/zeros", bytes(size))
        return path
    return tar_with(path, {"a/zeros": bytes(size)})


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_a_bomb_is_stopped_before_it_is_written(tmp_path, name):
    bomb = zeros(tmp_path / name, 40_000_000)
    assert bomb.stat().st_size < 50_000
    with pytest.raises(SeeError, match="expected to unpack to at most 10 MB, got more"):
        extract(bomb, tmp_path / "out", 10_000_000)
    assert not (tmp_path / "out" / "a" / "zeros").exists()
    with pytest.raises(SeeError, match="cannot be made.*at most 10 MB"):
        fetch(tmp_path / "a", name, [tmp_path], md5_of(bomb), None, "", 10_000_000)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.lock", name, "out"]
    extract(bomb, tmp_path / "whole", 40_010_000)
    assert (tmp_path / "whole" / "a" / "zeros").stat().st_size == 40_000_000


@pytest.mark.parametrize("make", [tar_with, zip_with])
def test_many_empty_files_are_a_bomb_too(tmp_path, make):
    archive = tmp_path / ("a.zip" if make is zip_with else "a.tgz")
    make(archive, {f"a/{i}": b"" for i in range(2000)})
    with pytest.raises(SeeError, match="expected to unpack to at most 4 MB, got more"):
        extract(archive, tmp_path / "out", 4_000_000)


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_a_disk_without_room_is_told_before_it_is_full(tmp_path, monkeypatch, name):
    archive = zeros(tmp_path / name, 5_000_000)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(SeeError, match="expected 5 MB or more of free space .*, got 1 MB. Free"):
        extract(archive, tmp_path / "out", 10**9)
    assert not (tmp_path / "out" / "a" / "zeros").exists()


NO_ARCHIVES = {
    "words.zip": (b"no zip file", "BadZipFile"),
    "empty.zip": (b"", "BadZipFile"),
    "words.tgz": (b"no tar file", "ReadError"),
    "empty.tgz": (b"", "ReadError"),
    "gzip.tgz": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "ReadError|EOFError"),
}


@pytest.mark.parametrize("name", NO_ARCHIVES)
def test_what_is_no_archive_is_told_by_extract_itself(tmp_path, name):
    content, cause = NO_ARCHIVES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SeeError, match=f"{name}: cannot be unpacked .({cause})") as error:
        extract(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_an_archive_that_is_not_there_is_told(tmp_path):
    for name in ("none.zip", "none.tgz"):
        with pytest.raises(SeeError, match=f"{name}: cannot be read"):
            extract(tmp_path / name, tmp_path / "out")
