"Measures of the embedding space where they meet a training: what is watched, what is written, and the pull on the own proxy."

import json
from dataclasses import replace

import nbformat
import pytest
import torch
import torch.nn.functional as F

from see_nb.training import training
from see_nb.retrieval.embedding import embed
from see_nb.data.datasets import RetrievalDataset
from see_nb.method.see_loss import class_proxies, proxy_anchor
from see_nb.experiments.plans import METHODS
from see_nb.training.recipes import Recipe
from see_nb.training.results import read_rows
from see_nb.retrieval.space import pull_cosines, pulls_on_proxy, space_measures
from see_nb.training.steps import ClassBatches
from see_nb.training.training import train

TINY = Recipe(width=4, embedding_size=12, epochs=2, batch_size=24, learning_rate=3e-2, validation=0)


@pytest.fixture
def tiny(monkeypatch):
    "Noisy squares of 20 classes to train on, and of 30 others."
    generator = torch.Generator().manual_seed(0)
    squares = (
        torch.randint(40, 216, (50, 1, 1, 4, 4), generator=generator)
        .repeat_interleave(4, 3)
        .repeat_interleave(4, 4)
    )
    images = (squares + torch.randint(-40, 41, (50, 8, 1, 16, 16), generator=generator)).to(
        torch.uint8
    )
    parts = {}
    for split, part in (("train", images[:20]), ("test", images[20:])):
        labels = torch.arange(len(part)).repeat_interleave(8)
        parts[split] = RetrievalDataset(
            part.flatten(0, 1), labels, [f"{split} {i}" for i in range(len(part))], "tiny", split
        )
    monkeypatch.setattr(
        training, "load_dataset", lambda name, root=None, split="train", **options: parts[split]
    )
    return parts


@pytest.fixture
def run_notebook_14(root, monkeypatch):
    "What notebook 14 defines, without its runs."
    monkeypatch.chdir(root / "nbs")
    monkeypatch.delenv("SEE_NB_OUTPUT", raising=False)
    defined = {}
    for cell in nbformat.read("14_space_run.ipynb", 4).cells:
        if cell.cell_type == "code" and not cell.source.startswith("#| slow"):
            exec(cell.source, defined)
    return defined


def test_each_epoch_of_a_watched_training_has_the_measures_of_that_epoch(tiny):
    def watch(encoder, objective, fit, test):
        return {
            "seen": space_measures(embed(encoder, fit), fit.labels, class_proxies(objective)),
            "unseen": space_measures(embed(encoder, test), test.labels),
        }

    run = train(TINY, watch=watch, progress=False)
    first, last = run.row["history"]
    assert first["seen"] != last["seen"]
    assert last["seen"] == space_measures(
        embed(run.model, tiny["train"]), tiny["train"].labels, class_proxies(run.objective)
    )
    assert last["unseen"] == space_measures(embed(run.model, tiny["test"]), tiny["test"].labels)
    assert last["seen"]["density"] < 1  # classes are told apart


@pytest.mark.parametrize("method", METHODS[:2], ids=("alone", "SEE"))
def test_notebook_14_writes_short_rows_with_all_that_notebook_23_reads(
    tiny, run_notebook_14, tmp_path, method
):
    recipe = replace(TINY, epochs=12, **method)
    train(
        recipe,
        results=tmp_path / "space.jsonl",
        experiment="space",
        watch=run_notebook_14["watcher"](recipe),
        progress=False,
    )
    text = (tmp_path / "space.jsonl").read_text()
    row = json.loads(text)
    assert len(text) < 12_000
    assert [h["epoch"] for h in row["history"] if "seen" in h] == [1, 3, 5, 7, 9, 11]
    assert [h["epoch"] for h in row["history"] if "own_proxy_histogram" in h] == [0, 6]
    pulls = row["history"][-1]["pulls"]
    assert (
        pulls["source"]["worst"] < 1e-5 and pulls["chosen"]["worst"] < 1e-5
    )  # float32, as in training
    assert pulls["class"]["worst"] > 1e-3  # not all images of a class are chosen
    assert (
        pulls["repeat"]["mean"] == pytest.approx(1, abs=1e-5) and abs(pulls["random"]["mean"]) < 0.3
    )


def test_notebook_14_keeps_the_points_of_a_sphere(tiny, run_notebook_14):
    recipe = replace(run_notebook_14["SPHERE"], train_classes=4, epochs=2, see=True)
    last = train(recipe, watch=run_notebook_14["sphere_watcher"](recipe), progress=False).row[
        "history"
    ][-1]
    assert torch.tensor(last["embeddings"]).norm(dim=1).sub(1).abs().max() < 2e-3
    assert len(last["embeddings"]) == len(last["labels"]) == 32 and len(last["proxies"]) == 4


def test_notebook_14_takes_the_rates_of_the_nearest_searched_size(
    run_notebook_14, root, monkeypatch, tmp_path
):
    rates = run_notebook_14["anchor_rates"]("cub50", 64)
    best = read_rows(root / "nbs/experiments/results/integration.jsonl")
    best = best[
        (best.experiment == "integration search")
        & (best.loss == "proxy_anchor")
        & (best.dataset == "cub50")
        & (best.embedding_size == 64)
    ]
    recall = best.history.map(lambda history: history[-1]["recall_at_1"])
    assert rates["learning_rate"] in set(best[recall == recall.max()].learning_rate)
    assert run_notebook_14["anchor_rates"]("cub50", 128) == rates
    with pytest.raises(ValueError, match="run notebook 12 first"):
        run_notebook_14["anchor_rates"]("cars196", 64)


def test_the_pulls_are_those_of_the_loss_that_trains():
    generator = torch.Generator().manual_seed(0)
    x, p = (
        F.normalize(torch.randn(n, 12, generator=generator, dtype=torch.float64), dim=1)
        for n in (30, 7)
    )
    y = torch.randint(0, 7, (30,), generator=generator)
    pulls = pulls_on_proxy(x, y, p)
    for c in y.unique():  # one proxy alone has a positive term only
        proxy = p[c : c + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            proxy_anchor(x[y == c], torch.zeros_like(y[y == c]), proxy), proxy
        )
        assert torch.allclose(pulls[y == c].sum(0), -gradient[0] / len(y.unique()), atol=1e-12)


@pytest.mark.parametrize("method", METHODS[:2], ids=("alone", "SEE"))
def test_synthetics_pull_against_their_source_on_batches_of_a_trained_model(tiny, method):
    recipe = replace(TINY, **method)
    run = train(recipe, progress=False)
    fit = tiny["train"]
    embeddings = embed(run.model, fit)
    apart = []
    for batch in ClassBatches(fit.labels, recipe):
        numbers = torch.tensor([image for image, _ in batch])
        half = pull_cosines(
            embeddings[numbers], fit.labels[numbers], class_proxies(run.objective), fraction=0.4
        )
        whole = pull_cosines(
            embeddings[numbers], fit.labels[numbers], class_proxies(run.objective), fraction=1.0
        )
        assert (half["source"] + 1).abs().max() < 1e-5 and (half["chosen"] + 1).abs().max() < 1e-5
        assert (whole["class"] + 1).abs().max() < 1e-5
        apart.append((half["class"] + 1).max())
    assert max(apart) > 1e-3  # here one of two images of a class was chosen
