"""What the wheel must do where nothing but its requirements is installed.

python .ci/wheel.py    in that environment, from any folder but the repository
"""

import importlib
import importlib.util
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_metric_learning.losses import ProxyAnchorLoss

import see_nb
from see_nb import ExpansionSchedule, SEELoss, recall_at_k

WINGS = {"method", "baselines", "data", "retrieval", "training", "experiments"}
ABSENT = (
    "nbdev",
    "fastcore",
    "matplotlib",
    "seaborn",
    "IPython",
    "nbformat",
    "nbconvert",
    "gradio",
)


def check_modules() -> None:
    "Every wing is there, and the inner ones import without any extra."
    assert not [name for name in ABSENT if importlib.util.find_spec(name)]
    names = [m.name for m in pkgutil.walk_packages(see_nb.__path__, "see_nb.")]
    assert {name.split(".")[1] for name in names} >= WINGS
    inner = [name for name in names if name.split(".")[1] not in ("experiments", "app")]
    for name in inner:
        importlib.import_module(name)
    print(f"{len(inner)} of {len(names)} modules imported; the others need an extra")


def check_loss() -> None:
    "SEE around a loss teaches proxies and encoder."
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(40, 32, generator=generator))
    embeddings.requires_grad_()
    labels = torch.arange(40) % 5
    objective = SEELoss(ProxyAnchorLoss(5, 32), schedule=ExpansionSchedule(epochs=2))
    objective.set_epoch(1)
    objective(embeddings, labels).backward()
    assert embeddings.grad.abs().sum() > 0
    assert 0 <= recall_at_k(embeddings.detach(), labels)[1] <= 1


def see_nb_command(*arguments: str) -> subprocess.CompletedProcess:
    "The installed program."
    program = Path(sys.executable).with_name("see-nb")
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def check_training(folder: Path) -> None:
    "Train on photos and evaluate; what needs an extra names it."
    colours = np.random.default_rng(0).integers(0, 200, (12, 3))
    for label, colour in enumerate(colours):
        (folder / "photos" / f"kind {label}").mkdir(parents=True)
        for i in range(4):
            pixels = colour + np.random.default_rng(i).integers(0, 56, (72, 64, 3))
            path = folder / "photos" / f"kind {label}" / f"{i}.jpg"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    root, run = str(folder / "photos"), str(folder / "run")
    options = "--backbone conv4 --image-size 64 --batch-size 8 --validation 0 --epochs 2".split()
    done = see_nb_command("train", "--dataset", "folder", "--root", root, "--output", run, *options)
    assert done.returncode == 0, done.stderr
    checkpoint = str(folder / "run" / "checkpoint.pt")
    again = see_nb_command("evaluate", "--checkpoint", checkpoint, "--root", root)
    assert again.returncode == 0 and "recall_at_1" in again.stdout, again.stderr
    print(again.stdout)
    for arguments in (
        ["reproduce"],
        ["train", "--root", str(folder), "--output", str(folder / "g")],
    ):
        done = see_nb_command(*arguments)
        assert done.returncode == 2 and 'pip install "see-nb[notebooks]"' in done.stderr, (
            done.stderr
        )


if __name__ == "__main__":
    check_modules()
    check_loss()
    with tempfile.TemporaryDirectory() as temporary:
        check_training(Path(temporary))
