"Places that cannot be used, locks between processes, and files that are whole or not there."

import os
import signal
import time

import pytest
from conftest import forked

from see_nb import files
from see_nb.errors import SeeError
from see_nb.files import locked, make_folder, replacing


def wait_for(path, seconds=20):
    end = time.time() + seconds
    while not path.exists():
        assert time.time() < end, f"{path} did not come"
        time.sleep(0.01)


def test_a_reader_never_sees_half_a_file_under_three_writers(tmp_path):
    path, size = tmp_path / "weights", 200_000

    def write(letter):
        for _ in range(40):
            with replacing(path) as part:
                part.write_bytes(letter * size)

    with replacing(path) as part:
        part.write_bytes(b"0" * size)
    pids = [forked(lambda letter=letter: write(letter)) for letter in (b"a", b"b", b"c")]
    reads, running = 0, set(pids)
    while running:
        content = path.read_bytes()
        assert len(content) == size and len(set(content)) == 1
        reads += 1
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0
                running.remove(pid)
    assert reads > 10 and [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")

    def write():
        with replacing(path) as part:
            part.write_text("new, hal")
            (tmp_path / "begun").touch()
            time.sleep(60)

    pid = forked(write)
    wait_for(tmp_path / "begun")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert path.read_text() == "old"


def test_a_lock_that_is_held_is_refused_and_ends_with_its_process(tmp_path):
    lock = tmp_path / "run" / ".lock"

    def hold():
        with locked(lock, wait=False):
            (tmp_path / "begun").touch()
            time.sleep(60)

    pid = forked(hold)
    wait_for(tmp_path / "begun")
    with pytest.raises(SeeError, match="run: in use by another process. Wait for it to end"):
        locked(lock, wait=False).__enter__()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with locked(lock, wait=False):
        pass


def test_a_lock_lets_one_process_work_at_a_time(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count():
        for _ in range(20):
            with locked(tmp_path / "lock"):
                value = int(counter.read_text())
                time.sleep(0.001)
                counter.write_text(str(value + 1))

    pids = [forked(count) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert counter.read_text() == "60"


PLACES = {
    "file": "File exists",
    "file/below": "Not a directory",
    "loop": "File exists|Too many levels of symbolic links",
    "x" * 300: "File name too long",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_a_folder_is_named_with_its_cause(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(SeeError, match=PLACES[place]) as error:
        make_folder(tmp_path / place)
    assert "\n" not in str(error.value)
    with pytest.raises(SeeError, match="cannot be written"):
        with replacing(tmp_path / place / "row.jsonl") as part:
            part.touch()


def test_who_waits_for_a_lock_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(files, "PATIENCE", 0.1)

    def wait():
        with locked(tmp_path / "lock"):
            pass

    said = ""
    with locked(tmp_path / "lock"):
        pid = forked(wait)
        for _ in range(600):
            said += capfd.readouterr().err
            if "waiting for another process, which holds" in said:
                break
            time.sleep(0.1)
    assert os.waitpid(pid, 0)[1] == 0 and "waiting for another process" in said
