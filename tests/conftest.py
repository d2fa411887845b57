"What several test files share."

import contextlib
import io
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import traceback
import zlib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from hypothesis import HealthCheck, settings
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores

# the same examples each time; pytest --hypothesis-profile=search draws new ones
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", patient, derandomize=True)
settings.register_profile("search", patient, print_blob=True)
settings.load_profile("same")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository."
    return ROOT


@pytest.fixture(scope="session")
def see_nb_command():
    "Run `see-nb` in this process: exit code, standard output, standard error."
    from see_nb.cli import main

    def call(*arguments, cwd=None) -> SimpleNamespace:
        out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
        os.chdir(cwd or before)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([str(a) for a in arguments])
        except Exception:  # what a user would see
            code = 1
            err.write(traceback.format_exc())
        finally:
            os.chdir(before)
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    return call


@pytest.fixture(scope="session")
def see_nb_process():
    "Start `see-nb` in a process of its own, for what only a process shows."

    def start(*arguments, python=(), **options) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *python, "-m", "see_nb", *map(str, arguments)]
        return subprocess.Popen(command, text=True, env=environment, **options)

    return start


@pytest.fixture
def tiny(monkeypatch):
    "A data set of 20 classes that trains in a moment."
    import torch

    from see_nb.data.datasets import RetrievalDataset
    from see_nb.training import splits

    generator = torch.Generator().manual_seed(0)
    prototypes = (
        torch.randint(0, 256, (40, 1, 4, 4), generator=generator)
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
    )
    noise = torch.randint(-40, 41, (40, 8, 1, 16, 16), generator=generator)
    images = (prototypes[:, None] + noise).clamp(0, 255).to(torch.uint8)
    halves = {
        split: RetrievalDataset(
            images[s].flatten(0, 1),
            torch.arange(20).repeat_interleave(8),
            [f"{split} {i}" for i in range(20)],
            "tiny",
            split,
        )
        for split, s in (("train", slice(0, 20)), ("test", slice(20, 40)))
    }
    monkeypatch.setattr(
        splits, "load_dataset", lambda name, root=None, split="train", **options: halves[split]
    )
    return halves


def photo(path: Path, look=(200, 60, 20), size=(24, 20), kind=None) -> Path:
    "A small photo in one colour, or of noise, where the look is a seed."
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, look if isinstance(look, tuple) else 0)
    if isinstance(look, int):
        pixels = np.random.default_rng(look).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
    image.save(path, kind)
    return path


def empty_png(path: Path, width: int, height: int) -> None:
    "A PNG of a few bytes that says how large it is."
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + checksum
    path.write_bytes(content)


def save_model(path: Path, seed: int = 0, **fields) -> Path:
    "The checkpoint of a network that was not trained."
    import torch

    from see_nb.training.recipes import Recipe
    from see_nb.training.run import Run, empty_model, make_objective

    small = {"dataset": "folder", "embedding_size": 16, "image_size": 32, "width": 4}
    recipe = Recipe(**small | fields)
    torch.manual_seed(seed)
    weights = {"weights": recipe.weights} if recipe.weights else {}
    model = empty_model(recipe, 3, pretrained=False, **weights).eval()
    known = {"name": "folder", "version": "", "image_hash": ""}
    data = {"train": known | {"classes": ["a", "b"]}, "test": known | {"classes": ["c"]}}
    Run(recipe, model, make_objective(recipe, 2), ["a", "b"], {"run": "small"}, data).save(path)
    return path


def forked(work) -> int:
    "Run `work` in a forked process: its exit code is 1 if it raises."
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["see_nb.training.training", "see_nb.experiments.figures"])


def in_processes(work, *arguments, n=1) -> None:
    "Run `work(rank, *arguments)` in processes that have imported torch and done nothing yet."
    processes = [FRESH.Process(target=work, args=(rank, *arguments)) for rank in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(900)
    assert [process.exitcode for process in processes] == [0] * n


def _run_cells(rank, path, environment, output, flagged) -> None:
    os.environ.update(environment)
    os.chdir(path.parent)
    notebook = read_nb(path)
    skipped = re.compile(r"^#\| *(slow|cuda|download|notest)\b", re.MULTILINE)
    shell = CaptureShell(path, mpl_format="png")
    left_out = (lambda cell: False) if flagged else lambda cell: skipped.search(cell.source)
    shell.run_all(notebook, exc_stop=True, preproc=left_out)
    write_nb(notebook, output)


def run_cells(
    path: Path, output: Path, flagged: bool = False, **environment: str
) -> nbformat.NotebookNode:
    "A notebook run in a process that has imported torch, by way of `output`; flagged cells or not."
    in_processes(_run_cells, path, environment, output, flagged)
    return nbformat.read(output, as_version=4)
