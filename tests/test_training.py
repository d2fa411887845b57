"The whole training run: equal to the bit across processes, robust, and what it writes."

import json
import math
from dataclasses import replace

import pytest
import torch

from see_nb import training
from see_nb.datasets import RetrievalDataset, data_root, dataset_states, load_dataset
from see_nb.results import comparison_table, read_rows
from see_nb.training import Recipe, load_model, train

SMALL = Recipe(embedding_size=12, epochs=1, width=4, batch_size=24, validation=0.0)


@pytest.fixture
def tiny(monkeypatch):
    "A data set of 20 classes that trains in a moment."
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randint(0, 256, (40, 1, 4, 4), generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    noise = torch.randint(-40, 41, (40, 8, 1, 16, 16), generator=generator)
    images = (prototypes[:, None] + noise).clamp(0, 255).to(torch.uint8)
    halves = {
        split: RetrievalDataset(images[s].flatten(0, 1), torch.arange(20).repeat_interleave(8), [f"{split} {i}" for i in range(20)], "tiny", split)
        for split, s in (("train", slice(0, 20)), ("test", slice(20, 40)))
    }
    monkeypatch.setattr(training, "load_dataset", lambda name, root=None, split="train": halves[split])
    return halves


def test_two_processes_train_to_the_same_bit(see_nb_command, tmp_path):
    states = []
    for name in ("one", "two"):
        done = see_nb_command("train", "--embedding-size", 16, "--epochs", 1, "--output", tmp_path / name)
        assert done.returncode == 0, done.stderr
        states.append(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True))
    for part in ("model", "loss"):
        for a, b in zip(states[0][part].values(), states[1][part].values(), strict=True):
            assert torch.equal(a, b)
    first, second = (read_rows(tmp_path / name / "results.jsonl").iloc[0] for name in ("one", "two"))
    assert first.recall_at_1 == second.recall_at_1 and first.fingerprint == second.fingerprint


def test_methods_of_one_seed_share_their_start_and_batches(tiny):
    plain, zero = train(replace(SMALL, see=False, n_expansion=8), progress=False), train(replace(SMALL, weight=0.0), progress=False)
    assert plain.metrics == zero.metrics
    assert all(torch.equal(a, b) for a, b in zip(plain.model.state_dict().values(), zero.model.state_dict().values()))
    see = train(SMALL, progress=False)
    assert see.row["history"][0]["loss"] == pytest.approx(plain.row["history"][0]["loss"])  # epoch 0: nothing is expanded yet
    longer = [train(replace(SMALL, epochs=3, see=see), progress=False).row["history"] for see in (False, True)]
    assert longer[0][2]["loss"] < longer[1][2]["loss"]  # later the second term counts


@pytest.mark.parametrize("loss", list(training.LOSSES))
def test_every_loss_trains_with_and_without_see(tiny, loss):
    for see in (False, True):
        run = train(replace(SMALL, loss=loss, see=see, epochs=6), progress=False)
        assert run.metrics["recall_at_1"] > 0.5 and math.isfinite(run.row["history"][-1]["loss"])


def test_a_row_is_whole_and_plain_json(tiny, tmp_path):
    run = train(replace(SMALL, validation=0.2, epochs=2), results=tmp_path / "r.jsonl", experiment="test", progress=False)
    row = json.loads((tmp_path / "r.jsonl").read_text())
    for key in ("experiment", "dataset", "split", "backbone", "embedding_size", "method", "loss", "see", "n_expansion", "weight", "seed",
                "epochs", "recall_at_1", "map_at_r", "seconds", "hardware", "threads", "versions", "commit", "fingerprint"):  # fmt: skip
        assert key in row, key
    assert len(row["history"]) == 2 and 0 <= row["history"][1]["map_at_r"] <= 1
    assert sum(row["own_proxy_histogram"]) == pytest.approx(1)
    assert row["recall_at_1"] == run.metrics["recall_at_1"]


def test_tables_are_what_pandas_makes_of_the_rows(root):
    rows = read_rows(*sorted((root / "nbs" / "results").glob("*.jsonl"))).rename(columns={"embedding_size": "D"})
    table = comparison_table(rows, ["dataset", "D"], "recall_at_1", "Proxy-Anchor").set_index(["dataset", "D", "method"])
    wide = rows.pivot_table(index=["dataset", "D", "seed"], columns="method", values="recall_at_1")
    for (dataset, d), cell in wide.groupby(level=[0, 1]):
        for method in cell:
            column = cell[method].dropna()
            text = table.loc[(dataset, d, method)].iloc[0]
            assert text == f"{column.mean():.1%} ± {column.std():.1%} ({len(column)})"
    assert not rows.duplicated("fingerprint").any()


def test_divergence_is_told_with_its_place(tiny):
    broken = RetrievalDataset(tiny["train"].images, tiny["train"].labels, tiny["train"].classes)
    broken.__class__ = type("Broken", (RetrievalDataset,), {"__getitems__": lambda self, i: (torch.full((len(i), 1, 16, 16), torch.nan), self.labels[i])})
    tiny["train"] = broken
    with pytest.raises(ValueError, match="epoch 0: the loss is nan. Lower the learning rate"):
        train(SMALL, progress=False)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    torch.save({"recipe": Attack()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="was not written by `see-nb train`"):
        load_model(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.skipif(dataset_states()["omniglot"]["state"] != "there and complete", reason="omniglot is not in the data root (set SEE_NB_DATA)")
def test_omniglot_has_its_published_size():
    train_set, test_set = load_dataset("omniglot"), load_dataset("omniglot", split="test")
    assert (len(train_set), len(train_set.classes)) == (964 * 20, 964)
    assert (len(test_set), len(test_set.classes)) == (659 * 20, 659)
    assert not set(train_set.classes) & set(test_set.classes)
    assert test_set.images.float().mean() < 60  # white strokes on black


@pytest.mark.skipif(dataset_states()["omniglot"]["state"] != "there and complete", reason="omniglot is not in the data root (set SEE_NB_DATA)")
def test_an_incomplete_omniglot_is_refused_by_name(tmp_path):
    source = data_root() / "omniglot-py" / "images_background"
    target = tmp_path / "omniglot-py" / "images_background"
    target.mkdir(parents=True)
    for alphabet in source.iterdir():
        (target / alphabet.name).symlink_to(alphabet)
    (target / "Greek").unlink()
    for character in (source / "Greek").iterdir():
        (target / "Greek" / character.name).mkdir(parents=True)
        for file in sorted(character.iterdir())[: 19 if character.name == "character03" else 20]:
            (target / "Greek" / character.name / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="Greek/character03 has 19"):
        load_dataset("omniglot", tmp_path)
