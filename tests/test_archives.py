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

from see_nb.data.benchmarks import Archive, extract, fetch
from see_nb.data.photos import hash_file
from see_nb.errors import SeeError


def pack(path: Path, members: dict[str, bytes], *special: tarfile.TarInfo, mode: int = 0) -> Path:
    "A zip file or a compressed tar file."
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                member = zipfile.ZipInfo(name)
                member.external_attr, member.compress_type = mode << 16, zipfile.ZIP_DEFLATED
                archive.writestr(member, content)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in special:
            archive.addfile(member)
    return path


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, linkname
    return member


HOSTILE = {
    "a name that leads out.tgz": ({"a/../../outside": b"1"},),
    "a name that leads out.zip": ({"a/../../outside": b"1"},),
    "an absolute name.tgz": ({"{f}/outside": b"1"},),
    "an absolute name.zip": ({"{f}/outside": b"1"},),
    "a link out.tgz": ({}, special("a/link", tarfile.SYMTYPE, "../../outside")),
    "an absolute link.tgz": ({}, special("a/link", tarfile.SYMTYPE, "/etc")),
    "a hard link.tgz": ({}, special("a/link", tarfile.LNKTYPE, "../secret")),
    "a device.tgz": ({}, special("a/null", tarfile.CHRTYPE)),
    "a link.zip": ({"a/link": b"/etc"},),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_or_stays_inside(tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    members, *more = HOSTILE[name]
    members = {"a/ok": b"1"} | {n.format(f=tmp_path): c for n, c in members.items()}
    archive = pack(tmp_path / name, members, *more, mode=stat.S_IFLNK | 0o777)
    before = sorted(tmp_path.iterdir())
    try:
        fetch(tmp_path / "a", Archive(name, hash_file(archive, "md5")), "")
    except SeeError as error:
        assert "cannot be unpacked" in str(error)
    else:
        assert name.endswith(".zip") or name.startswith("an absolute name")
        assert not any(p.is_symlink() for p in (tmp_path / "a").rglob("*"))
        shutil.rmtree(tmp_path / "a")
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
benchmarks.fetch(root / "birds", benchmarks.Archive("birds.tgz", md5), "")
assert sorted(p.name for p in (root / "birds").iterdir()) == ["1", "2"]
"""


def fetch_elsewhere(root: Path, seconds: float) -> subprocess.Popen:
    md5 = hash_file(root / "birds.tgz", "md5")
    return subprocess.Popen([sys.executable, "-c", FETCH, root, md5, str(seconds)])


def test_an_extraction_killed_half_way_is_not_taken_for_whole(tmp_path):
    archive = pack(tmp_path / "birds.tgz", {"birds/1": b"one", "birds/2": b"two"})
    process = fetch_elsewhere(tmp_path, 60)
    while process.poll() is None and not (tmp_path / "begun").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".birds.part" / "birds" / "1").exists() and not (tmp_path / "birds").exists()
    (tmp_path / ".birds.part" / "birds" / "3").touch()
    fetch(tmp_path / "birds", Archive(archive.name, hash_file(archive, "md5")), "")
    assert sorted(p.name for p in (tmp_path / "birds").iterdir()) == ["1", "2"]
    assert not (tmp_path / ".birds.part").exists()


def test_two_processes_unpack_once(tmp_path):
    pack(tmp_path / "birds.tgz", {"birds/1": b"one", "birds/2": b"two"})
    processes = [fetch_elsewhere(tmp_path, 1) for _ in range(2)]
    assert [process.wait(600) for process in processes] == [0, 0]
    assert (tmp_path / "count").read_text() == "x"


@pytest.mark.parametrize("ending", ["zip", "tgz"])
@pytest.mark.parametrize("kind", ["one large file", "many empty files", "a full disk"])
def test_a_bomb_is_stopped_before_it_is_written(tmp_path, monkeypatch, ending, kind):
    members = {"a/zeros": bytes(40_000_000)}  # or files that take a block of the disk each
    members = {f"a/{i}": b"" for i in range(3000)} if "empty" in kind else members
    bomb, limit = pack(tmp_path / f"bomb.{ending}", members), 10_000_000
    assert bomb.stat().st_size < 500_000
    if kind == "a full disk":
        usage = type(shutil.disk_usage(tmp_path))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, 10**7))
        limit = 10**9
    with pytest.raises(SeeError, match="cannot be made.*expected to unpack to at most .* got more"):
        fetch(tmp_path / "a", Archive(bomb.name, unpacked=limit), "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.lock", bomb.name]
    monkeypatch.undo()
    extract(bomb, tmp_path / "whole", 40_010_000)
    assert len(list((tmp_path / "whole" / "a").iterdir())) == len(members)
