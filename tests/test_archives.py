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


OUTSIDE = ("a/../../outside", "{f}/outside")
LINKS = {
    "symlink": special("a/link", tarfile.SYMTYPE, "../../outside"),
    "absolute symlink": special("a/link", tarfile.SYMTYPE, "/etc"),
    "hard link": special("a/link", tarfile.LNKTYPE, "../secret"),
    "device": special("a/null", tarfile.CHRTYPE),
}
BAD_ARCHIVES = {
    **{
        f"{make.__name__} {name}": lambda f, make=make, name=name: make(
            f / ("a.zip" if make is zip_with else "a.tgz"), {"a/ok": b"1", name.format(f=f): b"1"}
        )
        for make in (tar_with, zip_with)
        for name in OUTSIDE
    },
    **{
        name: lambda f, member=member: tar_with(f / "a.tgz", {"a/ok": b"1"}, member)
        for name, member in LINKS.items()
    },
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
    many = {f"a/{i}": b"" for i in range(3000)}  # each takes a block of the disk
    (zip_with if name == "a.zip" else tar_with)(tmp_path / f"many {name}", many)
    with pytest.raises(SeeError, match="expected to unpack to at most 10 MB, got more"):
        extract(tmp_path / f"many {name}", tmp_path / "out", 10_000_000)
    extract(bomb, tmp_path / "whole", 40_010_000)
    assert (tmp_path / "whole" / "a" / "zeros").stat().st_size == 40_000_000


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_a_disk_without_room_is_told_before_it_is_full(tmp_path, monkeypatch, name):
    archive = zeros(tmp_path / name, 5_000_000)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(SeeError, match="expected 5 MB or more of free space .*, got 1 MB. Free"):
        extract(archive, tmp_path / "out", 10**9)
    assert not (tmp_path / "out" / "a" / "zeros").exists()


NO_ARCHIVES = {
    "none.zip": (None, "cannot be read"),
    "none.tgz": (None, "cannot be read"),
    "words.zip": (b"no zip file", "cannot be unpacked .(BadZipFile)"),
    "empty.zip": (b"", "cannot be unpacked .(BadZipFile)"),
    "words.tgz": (b"no tar file", "cannot be unpacked .(ReadError)"),
    "empty.tgz": (b"", "cannot be unpacked .(ReadError)"),
    "gzip.tgz": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "cannot be unpacked .(ReadError|EOFError)"),
}


@pytest.mark.parametrize("name", NO_ARCHIVES)
def test_what_is_no_archive_is_told_by_extract_itself(tmp_path, name):
    content, cause = NO_ARCHIVES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SeeError, match=f"{name}: {cause}") as error:
        extract(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(error.value)
