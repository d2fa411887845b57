"The whole training run: equal to the bit across processes and after kills, robust, and what it writes."

import contextlib
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate import notebook_launcher
from conftest import in_processes
from PIL import Image
from torch import nn

from see_nb.baselines.registry import EXPANSIONS, LOSSES
from see_nb.data.datasets import data_root, dataset_states, load_dataset
from see_nb.errors import SeeError
from see_nb.retrieval.embedding import embed, evaluate
from see_nb.training import splits, training
from see_nb.training.checkpoints import read_checkpoint
from see_nb.training.models import create_model
from see_nb.training.recipes import Recipe
from see_nb.training.results import advice, different_fields, hits_of, read_rows
from see_nb.training.run import empty_model, load_model, make_objective
from see_nb.training.splits import load_split
from see_nb.training.steps import Step, make_optimizer
from see_nb.training.training import Training, train

SMALL = Recipe(embedding_size=12, epochs=2, width=4, batch_size=24, validation=0.0)


class Enough(Exception):
    pass


def same(one, other):
    "Whether two modules or their states are equal, to the bit; a loss may keep plain numbers."
    states = [m.state_dict() if isinstance(m, nn.Module) else m for m in (one, other)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(*(state.values() for state in states))
    )


def same_checkpoints(*paths):
    "Whether two finished trainings have the same weights and the same history."
    one, other = map(read_checkpoint, paths)
    parts = all(same(one[part], other[part]) for part in ("model", "objective"))
    return parts and one["row"]["history"] == other["row"]["history"]


def around(name, **changes):
    "The small recipe with a loss or an expansion of the registry."
    if name in EXPANSIONS:
        return replace(SMALL, expansion=name, **EXPANSIONS[name].recipe, **changes)
    each = LOSSES[name].samples_per_class
    return replace(SMALL, loss=name, samples_per_class=each, batch_size=each * 4, **changes)


def quick(recipe, **changes):
    "A training without a bar."
    return train(replace(recipe, **changes), progress=False)


# What learns, and from what


@pytest.mark.parametrize("name", ["daml", "hdml"])
def test_the_networks_of_a_generator_learn_at_the_rate_of_the_head(name):
    options = EXPANSIONS[name].recipe | {"expansion": name, "head_rate": 2, "proxy_rate": 1000}
    recipe = replace(SMALL, **options)
    model, objective = create_model("conv4", recipe.embedding_size), make_objective(recipe, 5, 8)
    optimizer, _ = make_optimizer(recipe, model, objective, 10)
    backbone, head, own = optimizer.param_groups
    networks = {id(p) for p in objective.expansion.parameters()}
    assert networks and {id(p) for p in head["params"]} > networks
    assert own["params"] == [objective.loss.proxies]
    rates = [group["max_lr"] / recipe.learning_rate for group in (backbone, head, own)]
    assert rates == pytest.approx([1, 2, 1000])


def test_methods_of_one_seed_share_their_start_and_batches(tiny):
    losses = [
        [epoch["loss"] for epoch in quick(SMALL, epochs=3, see=see).row["history"]]
        for see in (False, True)
    ]
    assert losses[0][0] == pytest.approx(losses[1][0])  # epoch 0: nothing is expanded yet
    assert losses[0][2] < losses[1][2]  # later the second term counts


@pytest.mark.parametrize("loss", [name for name in LOSSES if LOSSES[name].kind != "graded pairs"])
def test_every_loss_trains_with_and_without_see(tiny, loss):
    each = LOSSES[loss].samples_per_class
    sizes = {"samples_per_class": each, "batch_size": each * max(24 // each, 2)}
    for see in (False, True):
        run = quick(SMALL, loss=loss, epochs=8, see=see, **sizes)
        assert run.metrics["recall_at_1"] > 0.5 and math.isfinite(run.row["history"][-1]["loss"])


@pytest.mark.parametrize("expansion", [n for n, e in EXPANSIONS.items() if e.makes_points])
def test_every_augmentation_trains(tiny, expansion):
    learned = expansion in ("daml", "hdml")  # their generators have to learn first
    run = quick(around(expansion, epochs=12 if learned else 6))
    assert run.metrics["recall_at_1"] > 0.5 and run.row["method"].startswith("Proxy-Anchor + ")


GO_ON = """proxy_anchor curricularface soft_triple triplet_distance_weighted multi_similarity xbm
smart_mining htl mic hard_proxies daml hdml""".split()


@pytest.mark.parametrize("loss", GO_ON)
def test_every_kind_of_loss_goes_on_to_the_bit(tiny, tmp_path, loss):
    real, recipe = Training.train_step, around(loss, epochs=4)

    def step(self, images, labels):
        if self.steps_done == 13:
            raise Enough
        real(self, images, labels)

    options = {"checkpoint": tmp_path / "c.pt", "checkpoint_every": 2, "progress": False}
    with patch.object(Training, "train_step", step), pytest.raises(Enough):
        train(recipe, **options)
    train(recipe, resume=True, **options)
    train(recipe, checkpoint=tmp_path / "whole.pt", progress=False)
    assert same_checkpoints(tmp_path / "c.pt", tmp_path / "whole.pt")


# Rows


ALWAYS = """experiment dataset split backbone embedding_size method loss see n_expansion weight seed
epochs recall_at_1 map_at_r seconds hardware threads versions commit fingerprint run
images_per_second processes n_train_classes""".split()


def test_a_row_is_whole(tiny, tmp_path):
    recipe = replace(SMALL, validation=0.2, curriculum="constant")
    run = train(recipe, results=tmp_path / "r.jsonl", experiment="test", progress=False)
    row = read_rows(tmp_path / "r.jsonl").iloc[0]
    assert not [key for key in ALWAYS if key not in row]
    assert len(row.history) == 2 and 0 <= row.history[1]["map_at_r"] <= 1
    assert sum(row.own_proxy_histogram) == pytest.approx(1)
    assert row.recall_at_1 == run.metrics["recall_at_1"]
    hits = hits_of(row)
    assert [len(part) for part in hits] == load_split(run.recipe).labels.bincount().tolist()
    assert sum(part.sum() for part in hits) / row.n_test == row.recall_at_1


# Kills, full disks, NaN


def kill_and_resume(rank, folder, kills):
    "A training that is killed again and again and then ended, and one in one go."
    recipe = replace(SMALL, epochs=4, train_classes=120, validation=0.1)

    def go_on(name):
        files = {"checkpoint": folder / f"{name}.pt", "results": folder / f"{name}.jsonl"}
        train(recipe, **files, resume=True, progress=False, checkpoint_every=3)

    moments, real = random.Random(0), Training.train_step
    for number in range(kills):
        done, tell = os.pipe()

        def step(self, images, labels, tell=tell):
            real(self, images, labels)
            os.write(tell, b".")

        child = os.fork()
        if child == 0:
            Training.train_step = step
            go_on("killed")
            os._exit(0)
        os.close(tell)
        if number % 2:
            os.read(done, 1)  # a step is done
        time.sleep(moments.uniform(0, 0.05 if number % 2 else 0.4))  # or while it starts
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    for name in ("killed", "whole"):
        go_on(name)


def test_killed_ten_times_and_resumed_is_equal_to_the_bit(tmp_path):
    in_processes(kill_and_resume, tmp_path, 10)
    assert same_checkpoints(tmp_path / "killed.pt", tmp_path / "whole.pt")
    killed, whole = (read_rows(tmp_path / f"{name}.jsonl") for name in ("killed", "whole"))
    assert len(killed) == len(whole) == 1
    assert different_fields(dict(killed.iloc[0]), dict(whole.iloc[0])) == []


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tiny, tmp_path):
    path, recipe, count = tmp_path / "c.pt", replace(SMALL, epochs=4), itertools.count(1)
    real = Path.write_bytes

    def full(self, content):
        if next(count) < 3:
            return real(self, content)
        real(self, b"half of it")
        raise OSError(28, "No space left on device")

    message = "No space left.*The one before is whole"
    with patch.object(Path, "write_bytes", full), pytest.raises(SeeError, match=message):
        train(recipe, checkpoint=path, progress=False)
    assert read_checkpoint(path)["epoch"] == 2
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["c.pt"]
    resumed = train(recipe, checkpoint=path, resume=True, progress=False)
    assert same(resumed.model, quick(recipe).model)


@pytest.mark.parametrize("breaks", ["images", "weights", "loss", "gradient"])
def test_a_broken_step_is_told_and_no_checkpoint_is_overwritten(tiny, tmp_path, breaks):
    real, path = Training.train_step, tmp_path / "c.pt"

    def step(self, images, labels):
        if self.steps_done == 9:
            if breaks == "images":
                images = images.float().index_fill(0, torch.tensor([3]), torch.nan)
            elif breaks == "weights":
                self.model.head[1].weight.data[0, 0] = torch.inf
            elif breaks == "loss":
                self.objective.loss.alpha = torch.inf
            else:
                self.model.head[1].weight.register_hook(lambda gradient: gradient * torch.nan)
        real(self, images, labels)

    options = {"checkpoint": path, "checkpoint_every": 1, "progress": False}
    message = r"step 10 \(epoch 1\): the loss or a weight is NaN or infinite"
    with patch.object(Training, "train_step", step), pytest.raises(SeeError, match=message):
        train(replace(SMALL, epochs=3), **options)
    state = read_checkpoint(path)
    assert state["epoch"] * 6 + state["position"] == 9
    kept = [*state["model"].values(), *state["objective"].values()]
    assert all(t.isfinite().all() for t in kept if t.is_floating_point())


# Precision and rates


@pytest.mark.parametrize("name", ["htl", "smart_mining", "mic", "hard_proxies", "daml", "hdml"])
def test_references_survive_half_precision(tiny, name):
    history = quick(around(name, precision="bf16", epochs=3)).row["history"]
    assert all(math.isfinite(epoch["loss"]) for epoch in history)


def test_half_precision_keeps_head_and_loss_in_single(tiny):
    seen, real = {"backbone": set(), "head": set(), "loss": set()}, Step.forward

    def forward(self, images, labels):
        layers = {"backbone": self.encoder.backbone[0], "head": self.encoder.head}
        hooks = [
            layer.register_forward_hook(lambda m, i, out, name=name: seen[name].add(out.dtype))
            for name, layer in layers.items()
        ]
        value = real(self, images, labels)
        seen["loss"].add(value.dtype)
        for hook in hooks:
            hook.remove()
        return value

    with patch.object(Step, "forward", forward):
        run = quick(SMALL, precision="bf16", epochs=15)
    assert seen == {"backbone": {torch.bfloat16}, "head": {torch.float}, "loss": {torch.float}}
    assert run.metrics["recall_at_1"] > 0.5 and run.loss.proxies.dtype == torch.float32
    assert quick(SMALL).metrics  # another precision in the same process


def test_the_backbone_stands_still_during_warm_up(tiny):
    torch.manual_seed(0)
    start = create_model("conv4", 12, width=4, channels=1)
    options = {"schedule": "constant", "learning_rate": 1e-3}
    warm, none = (quick(SMALL, warmup_epochs=n, **options).model for n in (2, 0))
    for name, value in start.backbone.named_parameters():
        assert torch.equal(value, warm.backbone.get_parameter(name)), name
        assert not torch.equal(value, none.backbone.get_parameter(name)), name
    assert not torch.equal(start.head[1].weight, warm.head[1].weight)


def test_gradients_are_clipped_by_value(tiny, monkeypatch):
    seen, real = [], torch.optim.AdamW.step

    def step(self, *arguments, **options):
        network = [p for group in self.param_groups[:2] for p in group["params"]]
        seen.append(max(p.grad.abs().max().item() for p in network))
        return real(self, *arguments, **options)

    monkeypatch.setattr(training, "CLIP", 1e-3)
    with patch.object(torch.optim.AdamW, "step", step):
        quick(SMALL)
    assert max(seen) == pytest.approx(1e-3)


def test_settings_of_accelerate_from_elsewhere_do_not_count(tiny, monkeypatch):
    expected = quick(SMALL).row
    for name, value in (("GRADIENT_ACCUMULATION_STEPS", "8"), ("MIXED_PRECISION", "bf16")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
        assert different_fields(expected, quick(SMALL).row) == []
        assert os.environ[f"ACCELERATE_{name}"] == value


@pytest.mark.skipif(torch.cuda.is_available(), reason="for computers without a GPU")
def test_half_precision_that_only_a_gpu_has_is_refused(tiny):
    with pytest.raises(SeeError, match="fp16 needs a GPU"):
        quick(SMALL, precision="fp16")


# Several processes

CONVNEXT = {
    "backbone": "test_convnext", "pretrained": False, "image_size": 32, "embedding_size": 12, "batch_size": 24,
    "validation": 0, "learning_rate": 1e-5, "schedule": "constant", "curriculum": "constant",
}  # fmt: skip
SAME = "htl", "hard_proxies", "smart_mining", "hdml", "daml"  # draw nothing, or the same
OTHER = "mic", "deep_ranking"  # draw triplets in each process


def first_steps(recipe, n, expand=False):
    "Losses and weights of the first steps, and the training."
    real, losses, last = Training.train_step, [], []

    def step(self, images, labels):
        if self.steps_done == n:
            raise Enough
        if expand:
            self.objective.schedule = None  # from the start
        before = self.total.item()
        real(self, images, labels)
        losses.append(self.total.item() - before)
        last[:] = [self]

    with patch.object(Training, "train_step", step), contextlib.suppress(Enough):
        quick(recipe)
    parts = *last[0].model.parameters(), *last[0].objective.parameters()
    return {"losses": losses, "weights": [p.detach().clone() for p in parts]}, last[0]


def trained_together(folder, references):
    "What one process, or each of several, learns and finds."
    results = {}
    for see in (False, True):
        recipe = Recipe(**CONVNEXT, epochs=1, see=see, proxy_rate=1e3)
        results[see], state = first_steps(recipe, 10, expand=see)
    for name in references:
        how = {"loss": name}
        if name in EXPANSIONS:
            how = EXPANSIONS[name].recipe | {"expansion": name}
        few = {"epochs": 2, "train_classes": 20, "proxy_rate": 1e2, "n_expansion": 4}
        results[name], _ = first_steps(Recipe(**CONVNEXT | few | how), 4)
    torch.manual_seed(0)
    model = create_model("test_convnext", 12, pretrained=False, channels=1, image_size=32)
    test = load_dataset("glyphs", split="test").select_classes(torch.arange(101))
    options = {"image_size": 32, "batch_size": 64, "accelerator": state.accelerator}
    results["embeddings"] = embed(model, test, **options)
    results["metrics"] = evaluate(model, test, **options)
    rank, world = state.accelerator.process_index, state.accelerator.num_processes
    torch.save(results, f"{folder}/{rank} of {world}")


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    "What one process learns, and what two do that a launcher has started."
    folder = tmp_path_factory.mktemp("processes")
    trained_together(folder, SAME)
    launcher = "-m torch.distributed.run --standalone --nproc_per_node 2".split()
    options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "timeout": 600}
    command = [sys.executable, *launcher, __file__, folder]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / name) for name in ("0 of 1", "0 of 2", "1 of 2")]


def test_two_processes_train_as_one(one_and_two):
    one, two, other = one_and_two
    for see in (False, True):
        assert len(one[see]["losses"]) == len(two[see]["losses"]) == 10
        assert two[see]["losses"] == pytest.approx(one[see]["losses"], rel=1e-5)
        weights = [results[see]["weights"] for results in one_and_two]
        for a, b, c in zip(*weights, strict=True):
            assert (a - b).abs().max() < 1e-5
            assert torch.equal(b, c)  # proxies are the same on every rank, and so is the rest
    assert one[True]["losses"][0] > one[False]["losses"][0]  # SEE was at work
    assert torch.allclose(one["embeddings"], two["embeddings"], atol=1e-6)
    assert one["metrics"] == two["metrics"] == other["metrics"]


def test_references_learn_in_two_processes_what_they_learn_in_one(one_and_two):
    one, two, other = one_and_two
    for name in (*SAME, *OTHER):
        assert all(map(torch.equal, two[name]["weights"], other[name]["weights"])), name
    for name in SAME:
        assert two[name]["losses"] == pytest.approx(one[name]["losses"], rel=2e-3), name


def launch_two(rank, path):
    def work():
        changes = CONVNEXT | {"validation": 0.2, "learning_rate": 1e-3}
        recipe = Recipe(**changes, train_classes=60, epochs=1)
        train(recipe, progress=False, results=path, checkpoint=f"{path}.pt")

    notebook_launcher(work, num_processes=2)


def test_a_notebook_launches_two_processes_and_gets_one_row(tmp_path):
    in_processes(launch_two, tmp_path / "rows.jsonl")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len(rows) == 1 and rows.processes[0] == 2 and rows.history[0][0]["recall_at_1"] > 0


# Data


def coloured(colour, generator, size=(48, 40)):
    "A noisy photo of one colour."
    noise = torch.randint(0, 56, (*size, 3), generator=generator)
    return Image.fromarray((colour + noise).to(torch.uint8).numpy())


@pytest.fixture
def small_photos(tmp_path, monkeypatch):
    "A folder of 32 photos of 8 classes, with caches beside it."
    monkeypatch.setenv("SEE_NB_DATA", str(tmp_path / "home"))
    generator = torch.Generator().manual_seed(0)
    for label in range(8):
        (tmp_path / "photos" / f"{label}").mkdir(parents=True)
        colour = torch.randint(0, 200, (3,), generator=generator)
        for i in range(4):
            coloured(colour, generator).save(tmp_path / "photos" / f"{label}" / f"{i}.png")
    return tmp_path / "photos"


PHOTOS = replace(SMALL, dataset="folder", image_size=32, batch_size=8)
CUT = replace(PHOTOS, backbone="resnet10t", pretrained=False, crops=3, epochs=4, width=16,
              learning_rate=1e-3, batch_norms="eval")  # fmt: skip


def test_photos_are_checked_before_training_starts(small_photos):
    with pytest.raises(SeeError, match="image_size: folder holds photos of many sizes"):
        train(replace(PHOTOS, image_size=0), root=small_photos, progress=False)
    assert train(PHOTOS, root=small_photos, progress=False).row["n_test_classes"] == 4
    for damaged in small_photos.glob("*/2.png"):
        damaged.write_bytes(damaged.read_bytes()[:150])
    with (
        patch.object(Training, "train_step", lambda *a: pytest.fail("it has begun")),
        pytest.raises(SeeError, match=r"\d/2.png"),
    ):
        train(PHOTOS, root=small_photos, progress=False)


def test_queries_search_their_gallery_from_training_to_evaluation(
    see_nb_command, tmp_path, monkeypatch
):
    lines, generator = [], torch.Generator().manual_seed(0)
    (tmp_path / "inshop" / "img").mkdir(parents=True)
    for item, i in itertools.product(range(16), range(4)):
        name = f"img/{item:02d}_{i}.jpg"
        coloured(12 * item, generator, (40, 30)).save(tmp_path / "inshop" / name)
        split = "train" if item < 8 else "query" if i < 2 else "gallery"
        lines.append(f"{name} id_{item:08d} {split}")
    text = "\n".join([str(len(lines)), "image_name item_id evaluation_status", *lines])
    (tmp_path / "inshop" / "list_eval_partition.txt").write_text(text)
    small = partial(load_dataset, allow_incomplete=True)  # the benchmark has thousands of photos
    monkeypatch.setattr(splits, "load_dataset", small)
    recipe = replace(PHOTOS, dataset="inshop")
    with pytest.warns(UserWarning, match="compare with no published number"):
        run = train(recipe, root=tmp_path, progress=False, checkpoint=tmp_path / "c.pt")
    assert (run.row["n_test"], run.row["n_test_classes"]) == (16, 8)
    assert set(run.metrics) == {"recall_at_1", "recall_at_10", "map_at_r"}
    assert all(0 <= n < 16 for found in run.row["neighbours"].values() for n in found)
    done = see_nb_command("evaluate", "--checkpoint", tmp_path / "c.pt", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"recall_at_1  {run.metrics['recall_at_1']:7.2%}" in done.stdout


# Frozen parts, and the raw network


@pytest.mark.parametrize("stage", ["backbone", "layer3"])
def test_what_comes_out_of_the_frozen_part_is_made_once(small_photos, tmp_path, stage):
    recipe = replace(CUT, frozen=stage)
    run = train(recipe, root=small_photos, progress=False)
    folder = tmp_path / "home" / "cache" / "features"

    def kept():
        return {path: path.stat().st_ino for path in folder.glob("*.npy")}

    files = kept()
    assert len(files) == 2
    torch.manual_seed(0)
    start = empty_model(recipe, 3, pretrained=False)
    before, now = (m.backbone.state_dict() for m in (start, run.model))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], now[name])}
    assert moved == ({"layer4"} if stage == "layer3" else set())
    assert not torch.equal(start.head[1].weight, run.model.head[1].weight)
    again = train(recipe, root=small_photos, progress=False)
    assert (again.metrics, kept()) == (run.metrics, files)
    # through the whole network, or from what was kept: the same
    whole = evaluate(run.model, load_dataset("folder", small_photos, "test"), image_size=32)
    assert whole == pytest.approx(run.metrics)


class RawFeatures(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.interpolation = model, model.interpolation

    def forward(self, images):
        return nn.functional.normalize(self.model.features(images))


@pytest.mark.parametrize("stage", ["", "layer3", "backbone"])
def test_the_raw_network_is_measured_before_training(small_photos, tmp_path, stage):
    start = empty_model(CUT, 3, pretrained=False)
    torch.save(start.backbone.state_dict(), tmp_path / "weights.pt")
    recipe = replace(CUT, weights=str(tmp_path / "weights.pt"), frozen=stage, epochs=2)
    row = train(recipe, root=small_photos, progress=False, raw=True).row
    test_set = load_dataset("folder", small_photos, "test")
    expected = evaluate(RawFeatures(start).eval(), test_set, image_size=32)
    raw = dict(row["raw"])
    assert raw.pop("embedding_size") == 512
    assert raw == pytest.approx(expected, abs=0.1 if stage == "layer3" else 1e-6)
    assert advice(row)


def test_a_network_without_weights_has_no_raw_metrics(tiny):
    assert not train(replace(SMALL, see=False), progress=False, raw=True).row["raw"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_network_frozen_up_to_a_stage_goes_on_to_the_bit(small_photos, tmp_path, precision):
    recipe = replace(CUT, frozen="layer3", precision=precision)
    whole = train(recipe, root=small_photos, progress=False, checkpoint=tmp_path / "whole.pt")
    kept = {"checkpoint": tmp_path / "cut.pt", "root": small_photos, "progress": False}
    epochs = itertools.count(1)

    def watch(*_, **__):
        if next(epochs) == 3:
            raise Enough
        return {}

    with pytest.raises(Enough):
        train(recipe, watch=watch, **kept)
    assert "row" not in read_checkpoint(tmp_path / "cut.pt")
    cut = train(recipe, resume=True, **kept)
    assert same_checkpoints(tmp_path / "whole.pt", tmp_path / "cut.pt")
    assert different_fields(whole.row, cut.row) == []
    assert same(load_model(tmp_path / "cut.pt")[1], cut.model)


def test_a_flipped_bit_in_what_is_kept_is_found(small_photos, tmp_path):
    recipe = replace(CUT, frozen="layer3")
    run = train(recipe, root=small_photos, progress=False)
    for path in (tmp_path / "home" / "cache" / "features").glob("*.npy"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 64
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="checksum does not match"):
        again = train(recipe, root=small_photos, progress=False)
    assert different_fields(run.row, again.row) == []


OMNIGLOT = pytest.mark.skipif(
    dataset_states()["omniglot"] != "there and complete",
    reason="omniglot is not in the data root (set SEE_NB_DATA)",
)


@OMNIGLOT
def test_omniglot_has_its_published_size():
    train_set, test_set = load_dataset("omniglot"), load_dataset("omniglot", split="test")
    assert (len(train_set), len(train_set.classes)) == (964 * 20, 964)
    assert (len(test_set), len(test_set.classes)) == (659 * 20, 659)
    assert not set(train_set.classes) & set(test_set.classes)
    assert test_set.images.float().mean() < 60  # white strokes on black


@OMNIGLOT
def test_an_incomplete_omniglot_is_refused_by_name(tmp_path):
    source = data_root() / "omniglot-py" / "images_background"
    target = tmp_path / "omniglot-py" / "images_background"
    for alphabet in source.iterdir():
        for character in alphabet.iterdir():
            short = (alphabet.name, character.name) == ("Greek", "character03")
            (target / alphabet.name / character.name).mkdir(parents=True)
            for file in sorted(character.iterdir())[: 19 if short else 20]:
                (target / alphabet.name / character.name / file.name).symlink_to(file)
    with pytest.raises(SeeError, match="Greek/character03 has 19"):
        load_dataset("omniglot", tmp_path)


if __name__ == "__main__":  # one of the two processes
    trained_together(sys.argv[1], [*SAME, *OTHER])
