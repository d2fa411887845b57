"Checkpoints: damaged, edited, foreign, or of another training."

import warnings
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from see_nb.baselines.mining import TrainingHooks
from see_nb.data.datasets import RetrievalDataset
from see_nb.errors import SeeError
from see_nb.training import training
from see_nb.training.checkpoints import FORMAT, read_checkpoint, save_checkpoint
from see_nb.training.recipes import Recipe
from see_nb.training.results import read_rows
from see_nb.training.run import load_run
from see_nb.training.splits import load_split
from see_nb.training.training import Training, train

SMALL = Recipe(embedding_size=12, epochs=2, width=4, batch_size=24, validation=0.0)
KEPT = {"checkpoint_every": 2, "progress": False}


class PowerCut(Exception):
    pass


@pytest.fixture
def stopped(tiny, tmp_path, monkeypatch):
    "A checkpoint of a training that was stopped at step 9."
    real = Training.train_step

    def step(self, images, labels):
        if self.steps_done == 9:
            raise PowerCut
        real(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_step", step)
        with pytest.raises(PowerCut):
            train(SMALL, checkpoint=tmp_path / "c.pt", **KEPT)
    return tmp_path / "c.pt"


@pytest.mark.parametrize("size", [0, 1, 100, 2000])
def test_a_cut_file_is_refused(stopped, tmp_path, size):
    (tmp_path / "cut.pt").write_bytes(stopped.read_bytes()[:size])
    with pytest.raises(SeeError, match="is damaged, or not written by"):
        load_run(tmp_path / "cut.pt")


def edits(state):
    "Name -> a change of a checkpoint, none of which may go further than a sentence."
    recipe, model, objective = state["recipe"], state["model"], state["objective"]
    head = "head.1.weight"
    return {
        "nothing but a format": {"format": FORMAT},
        "another format": state | {"format": 2},
        "no recipe": state | {"recipe": None},
        "unknown field": state | {"recipe": recipe | {"colour": 1}},
        "edited size": state | {"recipe": recipe | {"embedding_size": 16}},
        "edited width": state | {"recipe": recipe | {"width": 10**6}},
        "edited backbone": state | {"recipe": recipe | {"backbone": "resnet10t"}},
        "a tensor less": state | {"model": {k: v for k, v in model.items() if k != head}},
        "a tensor more": state | {"model": model | {"more": torch.ones(1)}},
        "another shape": state | {"model": model | {head: torch.ones(3)}},
        "classes cut": state | {"classes": state["classes"][:5]},
        "no objective": {k: v for k, v in state.items() if k != "objective"},
        "objective of text": state | {"objective": dict.fromkeys(objective, "x")},
    }


@pytest.mark.parametrize("finished", [False, True])
def test_an_edited_checkpoint_is_refused_in_one_line(stopped, tmp_path, finished):
    if finished:
        train(SMALL, checkpoint=stopped, resume=True, progress=False)
    state = read_checkpoint(stopped)
    assert ("row" in state) == finished
    for name, edited in edits(state).items():
        path = tmp_path / "edited.pt"
        torch.save(edited, path)
        with pytest.raises(SeeError) as refused:
            load_run(path)
        text = str(refused.value)
        assert "\n" not in text and "weights_only" not in text, (name, text)


def test_what_only_a_resume_needs_is_checked_too(stopped, tmp_path):
    state = read_checkpoint(stopped)
    edited = [state | {"optimizer": {}}, {k: v for k, v in state.items() if k != "epoch"}]
    for i, state in enumerate(edited):
        torch.save(state, tmp_path / f"{i}.pt")
        with pytest.raises(SeeError, match="its optimizer does not fit|is damaged, or not"):
            train(SMALL, checkpoint=tmp_path / f"{i}.pt", resume=True, progress=False)


def test_a_changed_data_set_is_not_gone_on_with(stopped, tiny):
    part = tiny["train"]
    renamed = ["new name", *part.classes[1:]]
    tiny["train"] = RetrievalDataset(part.images, part.labels, renamed, "tiny", "train")
    with pytest.raises(SeeError, match="other images or labels, classes .new name, train 0"):
        train(SMALL, checkpoint=stopped, resume=True, **KEPT)
    images = part.images.clone()
    images[0, 0, 0, 0] ^= 1
    tiny["train"] = RetrievalDataset(images, part.labels, part.classes, "tiny", "train")
    with pytest.raises(SeeError, match="got other images or labels. Put"):
        train(SMALL, checkpoint=stopped, resume=True, **KEPT)
    tiny["train"] = part
    assert train(SMALL, checkpoint=stopped, resume=True, **KEPT).row["n_expanded"] > 0


def test_trained_classes_are_not_tested(tiny):
    tiny["test"] = tiny["test"].select_classes(torch.arange(5))
    tiny["test"].classes[2] = "train 3"
    with pytest.raises(SeeError, match="were: train 3"):
        train(SMALL, progress=False)
    facts = tiny["train"].facts()
    with pytest.raises(SeeError, match="were: train 3"):
        load_split(SMALL, trained=facts)


def test_an_added_class_of_photos_leaves_the_split_of_the_model(tmp_path):
    photos = tmp_path / "photos"

    def add(name):
        (photos / name).mkdir(parents=True)
        for i in range(2):
            image = Image.new("RGB", (32, 32), (len(name), 9 * i, 7))
            image.save(photos / name / f"{i}.png")

    for i in range(8):
        add("c" * (i + 1))
    own = replace(SMALL, dataset="folder", image_size=16, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few classes
        run = train(own, root=photos, checkpoint=tmp_path / "c.pt", progress=False)
    add("a")
    test_set = load_split(own, photos, trained=load_run(tmp_path / "c.pt").data["train"])
    assert not set(test_set.classes) & set(run.classes) and "a" in test_set.classes


def test_two_trainings_into_one_folder(tiny, tmp_path, monkeypatch):
    "The second is refused; the first ends as if alone."
    real, told = Training.train_step, []

    def step(self, images, labels):
        if self.steps_done == 4 and not told:
            told.append(None)
            with pytest.raises(SeeError, match="in use by another process"):
                train(replace(SMALL, seed=1), checkpoint=tmp_path / "c.pt", progress=False)
            told[0] = "refused"
        real(self, images, labels)

    monkeypatch.setattr(Training, "train_step", step)
    run = train(SMALL, checkpoint=tmp_path / "c.pt", results=tmp_path / "r.jsonl", progress=False)
    assert told == ["refused"] and load_run(tmp_path / "c.pt").recipe == run.recipe == SMALL
    assert len(read_rows(tmp_path / "r.jsonl")) == 1


def test_a_place_that_cannot_be_written_is_told_before_the_first_epoch(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "train_step", lambda *a: pytest.fail("it has begun"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    for place in (
        {"results": tmp_path / "folder.jsonl"},
        {"results": tmp_path / "file" / "r.jsonl"},
        {"checkpoint": tmp_path / "file" / "c.pt"},
        {"checkpoint": tmp_path / "folder.jsonl", "resume": True},
    ):
        with pytest.raises(SeeError, match="folder|file|directory"):
            train(SMALL, progress=False, **place)


@pytest.mark.parametrize(
    "options",
    [{"checkpoint_every": -1}, {"n_workers": -1}],
)
def test_options_of_the_training_are_checked(tiny, options):
    with pytest.raises(SeeError, match=next(iter(options))):
        train(SMALL, progress=False, **options)


def test_a_watcher_that_finds_no_number_is_told_at_once(tiny):
    seen = []

    def watch(encoder, objective, train_set, test_set):
        seen.append(1)
        return {"norm": float("nan")}

    with pytest.raises(SeeError, match="row: Out of range float"):
        train(SMALL, progress=False, watch=watch)
    assert len(seen) == 1


def test_a_loss_that_wants_to_know_the_training_set_is_told_each_epoch(tiny, tmp_path, monkeypatch):
    real, calls = training.make_objective, []

    class Curious(TrainingHooks, nn.Module):
        asks = ("training set",)

        def refresh(self, embeddings, labels, features):
            calls.append((tuple(embeddings.shape), len(labels), tuple(features.shape)))

    def curious(recipe, *sizes):
        objective = real(recipe, *sizes)
        objective.hooks = Curious()
        return objective

    monkeypatch.setattr(training, "make_objective", curious)
    train(replace(SMALL, see=False), progress=False)
    assert calls == [((160, 12), 160, (160, 32))] * 2


def test_old_and_foreign_files_are_refused(tmp_path):
    save_checkpoint({"weight": torch.ones(2)}, tmp_path / "half.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "foreign.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "folder.pt").mkdir()
    for name in ("half", "foreign", "empty", "folder", "none"):
        with pytest.raises(SeeError, match="checkpoint: "):
            read_checkpoint(tmp_path / f"{name}.pt")
