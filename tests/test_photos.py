"The cache of photos when several processes want it, and when one of them dies."

import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from see_nb.data import cache as cache_module
from see_nb.data.cache import cache_photos
from see_nb.data.photos import Photos, read_photo

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


def child(work) -> int:
    "Run `work` in a forked process."
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_of_three_processes_one_decodes_and_all_read(photos, tmp_path, monkeypatch):
    slow_reads(monkeypatch, tmp_path / "log")

    def work():
        cached = cache_photos(photos, 20, tmp_path / "cache")
        assert all(cached[i].shape == (3, 20, 25) for i in range(N))

    pids = [child(work) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == N


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(photos, tmp_path, monkeypatch):
    slow_reads(monkeypatch, tmp_path / "log")
    pid = child(lambda: cache_photos(photos, 20, tmp_path / "cache"))
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
