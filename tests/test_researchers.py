"The recipes of the notebook for researchers, run as they stand there."

import re
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import in_processes
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch.utils.data import DataLoader, Subset, TensorDataset

from see_nb import evaluate, load_dataset

NOTEBOOK = Path(__file__).parents[1] / "nbs" / "training" / "13_researchers.ipynb"


def recipe(*names: str) -> dict:
    "What cells of the notebook define: those that begin with these names, after the data's."
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    named = {m[1]: c.source for c in cells if (m := re.search(r"^# recipe: (.+)$", c.source, re.M))}
    defined = {"__name__": "recipes"}
    for name in ("data", *names):
        exec(compile(named[name], str(NOTEBOOK), "exec"), defined)
    return defined


@pytest.fixture(scope="module")
def test_images():
    return load_dataset("glyphs", split="test").select_classes(torch.arange(60))


def epochs_told(objective) -> list[int]:
    "The epochs that `set_epoch` is called with, from now on."
    told, real = [], objective.set_epoch

    def tell(epoch):
        told.append(epoch)
        real(epoch)

    objective.set_epoch = tell
    return told


@pytest.mark.parametrize(
    "name, call", [("bare loop", "bare_loop"), ("pytorch-metric-learning", "pml_trainer")]
)
def test_a_recipe_learns_and_tells_each_epoch(name, call, test_images):
    code = recipe(name)
    model, objective, loader = code["make_parts"]()
    before = evaluate(model, test_images, ks=(1,))["recall_at_1"]
    told, proxies = epochs_told(objective), objective.loss.proxies.detach().clone()
    code[call](model, objective, loader, code["EPOCHS"])
    assert told[: code["EPOCHS"]] == list(range(code["EPOCHS"]))
    assert evaluate(model, test_images, ks=(1,))["recall_at_1"] > before + 0.05
    assert not torch.equal(objective.loss.proxies, proxies)


QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def lightning_parts(folder):
    "Lightning, the module of the recipe, and images in a fixed order, 16 a batch."
    L = pytest.importorskip("lightning", reason="lightning is not installed")
    code = recipe("lightning")
    glyphs = load_dataset("glyphs").select_classes(torch.arange(8))
    order = torch.argsort(torch.arange(len(glyphs)) % 16, stable=True)[:64]
    images = TensorDataset(glyphs.images[order], glyphs.labels[order])

    class Fed(code["SEEModule"]):
        "With images of its own: of every 16, a share for each process."

        def train_dataloader(self):
            rank, world = self.trainer.global_rank, self.trainer.world_size
            own = torch.arange(64).view(4, world, 16 // world)[:, rank].flatten()
            return DataLoader(Subset(images, own.tolist()), 16 // world)

    def make(epochs):
        torch.manual_seed(0)
        model = code["create_model"]("conv4", 16, width=4, channels=1)
        return Fed(model, ProxyAnchorLoss(8, 16), epochs)

    def fit(module, epochs, checkpoint=None, **options):
        options |= {"use_distributed_sampler": False, "default_root_dir": folder, **QUIET}
        trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", **options)
        trainer.fit(module, ckpt_path=checkpoint)
        return trainer

    return make, fit


def test_lightning_resumes_where_it_stopped(tmp_path):
    make, fit = lightning_parts(tmp_path)
    whole = make(4)
    fit(whole, 4)
    first = make(4)
    trainer = fit(first, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert any("proxies" in name for name in torch.load(tmp_path / "half.ckpt")["state_dict"])
    second = make(4)
    told = epochs_told(second.objective)
    fit(second, 4, str(tmp_path / "half.ckpt"))
    assert told == [1, 2, 3]  # the first by the checkpoint
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, msg=name)
    assert not torch.equal(first.objective.loss.loss.proxies, second.objective.loss.loss.proxies)


def learn_on_one_and_on_two(rank, folder):
    make, fit = lightning_parts(folder)
    start, states = make(3).state_dict(), []
    for options in ({"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}):
        module = make(3)
        module.model.eval()  # statistics of batch norms would be of one process's images
        fit(module, 3, **options)
        states.append(module.state_dict())
    for name, tensor in states[0].items():
        close = {"atol": 1e-3, "rtol": 0, "msg": name}
        torch.testing.assert_close(states[1][name].float(), tensor.float(), **close)
    moved = [(states[0][name] - start[name]).abs().max() for name in start if "proxies" in name]
    assert max(moved) > 0.1  # far more than the two differ


def test_lightning_on_two_processes_learns_what_one_does(tmp_path):
    pytest.importorskip("lightning", reason="lightning is not installed")
    in_processes(learn_on_one_and_on_two, tmp_path)  # it forks: no other test has run there
