"The whole training run: equal to the bit across processes and after kills, robust, and what it writes."

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from accelerate import notebook_launcher
from conftest import in_processes
from torch import nn

from see_nb.baselines.registry import EXPANSIONS, LOSSES, build_loss
from see_nb.data.datasets import data_root, dataset_states, load_dataset
from see_nb.errors import SeeError
from see_nb.method.see_loss import SEELoss
from see_nb.retrieval.embedding import embed, evaluate
from see_nb.training import steps, training
from see_nb.training.checkpoints import read_checkpoint
from see_nb.training.models import create_model
from see_nb.training.presets import PRESETS
from see_nb.training.recipes import Recipe
from see_nb.training.results import advice, different_fields, hits_of, read_rows
from see_nb.training.run import load_model
from see_nb.training.splits import load_split
from see_nb.training.training import train

SMALL = Recipe(embedding_size=12, epochs=2, width=4, batch_size=24, validation=0.0)


def same_weights(one, other):
    "Whether two checkpoints hold the same model and the same loss, to the bit."

    def equal(a, b):
        return (
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        )  # a loss may keep numbers besides tensors

    return all(
        equal(a, b)
        for part in ("model", "objective")
        for a, b in zip(one[part].values(), other[part].values(), strict=True)
    )


def test_two_processes_of_the_command_line_train_to_the_same_bit(see_nb_command, tmp_path):
    states = []
    for name in ("one", "two"):
        done = see_nb_command(
            "train", "--embedding-size", 16, "--epochs", 1, "--curriculum", "constant",
            "--width", 4, "--train-classes", 60, "--output", tmp_path / name
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        states.append(read_checkpoint(tmp_path / name / "checkpoint.pt"))
    assert same_weights(*states)
    first, second = (
        read_rows(tmp_path / name / "results.jsonl").iloc[0] for name in ("one", "two")
    )
    assert (
        first.recall_at_1 == second.recall_at_1
        and first.fingerprint == second.fingerprint
        and first.run != second.run
    )


def around(name, **changes):
    "The small recipe with a loss or an expansion of the registry."
    if name in EXPANSIONS:
        return replace(SMALL, expansion=name, **EXPANSIONS[name].recipe, **changes)
    each = LOSSES[name].samples_per_class
    return replace(SMALL, loss=name, samples_per_class=each, batch_size=each * 4, **changes)


@pytest.mark.parametrize("name", ["daml", "hdml"])
def test_the_networks_of_a_generator_learn_at_the_rate_of_the_head(name):
    options = EXPANSIONS[name].recipe | {"expansion": name, "head_rate": 2, "proxy_rate": 1000}
    recipe = replace(SMALL, **options)
    model = create_model("conv4", recipe.embedding_size)
    objective = training.make_objective(recipe, 5, 8)
    optimizer, _ = steps.make_optimizer(recipe, model, objective, 10)
    backbone, head, own = optimizer.param_groups
    networks = {id(p) for p in objective.expansion.parameters()}
    assert networks and {id(p) for p in head["params"]} > networks
    assert own["params"] == [objective.loss.proxies]
    rates = [group["max_lr"] / recipe.learning_rate for group in (backbone, head, own)]
    assert rates == pytest.approx([1, 2, 1000])


def test_a_threshold_that_nothing_reached_is_told(tiny):
    recipe = replace(SMALL, curriculum="threshold", threshold=0.9999)
    with pytest.warns(UserWarning, match=r"no source was expanded, .* threshold \(0.9999; --thre"):
        assert train(recipe, progress=False).row["n_expanded"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(replace(recipe, threshold=-1.0), progress=False).row["n_expanded"] > 0


def test_methods_of_one_seed_share_their_start_and_batches(tiny):
    plain, zero = (
        train(replace(SMALL, see=False, n_expansion=8), progress=False),
        train(replace(SMALL, expansion="none"), progress=False),
    )
    assert plain.metrics == zero.metrics
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.model.state_dict().values(), zero.model.state_dict().values())
    )
    see = train(SMALL, progress=False)
    assert see.row["history"][0]["loss"] == pytest.approx(
        plain.row["history"][0]["loss"]
    )  # epoch 0: nothing is expanded yet
    longer = [
        train(replace(SMALL, epochs=3, see=see), progress=False).row["history"]
        for see in (False, True)
    ]
    assert longer[0][2]["loss"] < longer[1][2]["loss"]  # later the second term counts


@pytest.mark.parametrize(
    "loss", [name for name, baseline in LOSSES.items() if baseline.kind != "graded pairs"]
)
def test_every_loss_trains_with_and_without_see(tiny, loss):
    each = LOSSES[loss].samples_per_class
    recipe = replace(
        SMALL, loss=loss, epochs=8, samples_per_class=each, batch_size=each * max(24 // each, 2)
    )
    for see in (False, True):
        run = train(replace(recipe, see=see), progress=False)
        assert run.metrics["recall_at_1"] > 0.5 and math.isfinite(run.row["history"][-1]["loss"])


@pytest.mark.parametrize(
    "loss",
    [
        "proxy_anchor",
        "curricularface",
        "soft_triple",
        "triplet_distance_weighted",
        "multi_similarity",
        "xbm",
        "smart_mining",
        "htl",
        "mic",
        "hard_proxies",
        "daml",
        "hdml",
    ],
)
def test_every_kind_of_loss_goes_on_to_the_bit(tiny, tmp_path, loss):
    class PowerCut(Exception):
        pass

    real, count, recipe = training.Training.train_step, iter(range(1000)), around(loss, epochs=4)

    def step(self, images, labels):
        if next(count) == 13:
            raise PowerCut
        real(self, images, labels)

    options = {"checkpoint": tmp_path / "c.pt", "checkpoint_every": 2, "progress": False}
    with patch.object(training.Training, "train_step", step), pytest.raises(PowerCut):
        train(recipe, **options)
    train(recipe, resume=True, **options)
    train(recipe, checkpoint=tmp_path / "whole.pt", progress=False)
    resumed, whole = (read_checkpoint(tmp_path / name) for name in ("c.pt", "whole.pt"))
    assert same_weights(resumed, whole) and resumed["row"]["history"] == whole["row"]["history"]


@pytest.mark.parametrize("expansion", [n for n, e in EXPANSIONS.items() if e.makes_points])
def test_every_augmentation_trains(tiny, expansion):
    learned = expansion in ("daml", "hdml")  # their generators have to learn first
    run = train(around(expansion, epochs=12 if learned else 6), progress=False)
    assert run.metrics["recall_at_1"] > 0.5 and run.row["method"].startswith("Proxy-Anchor + ")


def test_a_row_keeps_each_query_s_hit(tiny):
    run = train(replace(SMALL, curriculum="constant"), progress=False)
    hits = hits_of(run.row)
    assert [len(part) for part in hits] == load_split(run.recipe).labels.bincount().tolist()
    assert sum(part.sum() for part in hits) / run.row["n_test"] == run.row["recall_at_1"]


def test_a_row_is_whole_and_plain_json(tiny, tmp_path):
    run = train(
        replace(SMALL, validation=0.2, epochs=2),
        results=tmp_path / "r.jsonl",
        experiment="test",
        progress=False,
    )
    row = json.loads((tmp_path / "r.jsonl").read_text())
    for key in ("experiment", "dataset", "split", "backbone", "embedding_size", "method", "loss", "see", "n_expansion", "weight", "seed",
                "epochs", "recall_at_1", "map_at_r", "seconds", "hardware", "threads", "versions", "commit", "fingerprint", "run",
                "images_per_second", "processes", "n_train_classes"):  # fmt: skip
        assert key in row, key
    assert len(row["history"]) == 2 and 0 <= row["history"][1]["map_at_r"] <= 1
    assert sum(row["own_proxy_histogram"]) == pytest.approx(1)
    assert row["recall_at_1"] == run.metrics["recall_at_1"]


def test_fewer_training_classes_are_drawn_by_the_seed_and_nested():
    few, more, other = (
        load_split(Recipe(train_classes=n, seed=s), split="train")
        for n, s in ((20, 0), (50, 0), (20, 1))
    )
    assert [len(part.classes) for part in (few, more, other)] == [20, 50, 20]
    assert set(few.classes) < set(more.classes) and set(few.classes) != set(other.classes)
    assert len(load_split(Recipe(train_classes=20)).classes) == len(
        load_split(Recipe()).classes
    )  # all test classes
    with pytest.raises(
        ValueError, match="train_classes: expected at most the .* training classes of glyphs"
    ):
        load_split(Recipe(train_classes=10_000), split="train")


def kill_and_resume(rank, folder, kills):
    "A training that is killed again and again and then ended, and one in one go."
    recipe = replace(SMALL, epochs=4, train_classes=120, validation=0.1)

    def go_on(name):
        files = {"checkpoint": folder / f"{name}.pt", "results": folder / f"{name}.jsonl"}
        train(recipe, **files, resume=True, progress=False, checkpoint_every=3)

    moments, real = random.Random(0), training.Training.train_step
    for number in range(kills):
        done, tell = os.pipe()

        def step(self, images, labels, tell=tell):
            real(self, images, labels)
            os.write(tell, b".")

        child = os.fork()
        if child == 0:
            training.Training.train_step = step
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
    killed, whole = (read_checkpoint(tmp_path / f"{name}.pt") for name in ("killed", "whole"))
    assert same_weights(killed, whole)
    assert killed["row"]["history"] == whole["row"]["history"]
    rows = [read_rows(tmp_path / f"{name}.jsonl") for name in ("killed", "whole")]
    assert [len(r) for r in rows] == [1, 1]
    for key in ("recall_at_1", "map_at_r", "neighbours", "own_proxy_histogram"):
        assert rows[0][key].iloc[0] == rows[1][key].iloc[0], key


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tiny, tmp_path):
    path, count = tmp_path / "c.pt", 0

    def full(state, file):
        nonlocal count
        count += 1
        if count < 3:
            return real(state, file)
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    real, recipe = torch.save, replace(SMALL, epochs=4)
    with (
        patch.object(torch, "save", full),
        pytest.raises(ValueError, match="the disk is full.*The one before is whole"),
    ):
        train(recipe, checkpoint=path, progress=False)
    assert read_checkpoint(path)["epoch"] == 2 and [p.name for p in tmp_path.glob("[!.]*")] == [
        "c.pt"
    ]
    resumed, whole = (
        train(recipe, checkpoint=path, resume=True, progress=False),
        train(recipe, progress=False),
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(resumed.model.state_dict().values(), whole.model.state_dict().values())
    )


@pytest.mark.parametrize(
    "breaks, message",
    [
        ("images", r"step 9 \(epoch 1\): images of the batch hold NaN or Inf. Look at the data"),
        (
            "weights",
            r"step 9 \(epoch 1\): the embeddings are NaN or Inf while the images are fine: the weights have diverged",
        ),
        ("loss", r"step 9 \(epoch 1\): the loss is NaN or Inf while the embeddings are fine"),
        (
            "gradient",
            r"a weight has become NaN or Inf. Lower learning_rate|the embeddings are NaN or Inf",
        ),
    ],
)
def test_a_broken_step_is_told_and_no_checkpoint_is_overwritten(tiny, tmp_path, breaks, message):
    real, path = training.Training.train_step, tmp_path / "c.pt"

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

    with (
        patch.object(training.Training, "train_step", step),
        pytest.raises(ValueError, match=message),
    ):
        train(replace(SMALL, epochs=3), checkpoint=path, checkpoint_every=1, progress=False)
    state = read_checkpoint(path)
    assert state["epoch"] * 6 + state["position"] == 9
    assert all(
        t.isfinite().all()
        for t in (*state["model"].values(), *state["objective"].values())
        if t.is_floating_point()
    )


def test_wrong_labels_and_proxies_are_told_with_what_to_do(tiny):
    model, proxies = torch.randn(6, 12), build_loss("proxy_anchor", 20, 12)
    with pytest.raises(
        ValueError,
        match=r"labels: expected classes 0 to 19 \(the loss has 20 proxies\), got 0 to 20",
    ):
        SEELoss(proxies)(model, torch.tensor([0, 1, 2, 3, 4, 20]))
    with pytest.raises(
        ValueError,
        match="embeddings: expected floating point \\(B, 12\\), the size of the loss's proxies",
    ):
        SEELoss(proxies)(torch.randn(6, 13), torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"need at least 13 \(K \+ 1\), got 12"):
        replace(SMALL, n_expansion=12)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    torch.save({"format": 3, "recipe": Attack()}, tmp_path / "checkpoint.pt")
    with pytest.raises(SeeError, match="something else than tensors and plain values"):
        load_model(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "attacked").exists()


def test_a_checkpoint_of_another_recipe_is_not_resumed(tiny, tmp_path):
    train(SMALL, checkpoint=tmp_path / "c.pt", progress=False)
    with pytest.raises(ValueError, match="belongs to another recipe: weight 0.2, now 0.3"):
        train(replace(SMALL, weight=0.3), checkpoint=tmp_path / "c.pt", resume=True, progress=False)


# Precision, rates, frozen backbones


@pytest.mark.parametrize("name", ["htl", "smart_mining", "mic", "hard_proxies", "daml", "hdml"])
def test_references_survive_half_precision(tiny, name):
    run = train(around(name, precision="bf16", epochs=3), progress=False)
    assert all(math.isfinite(epoch["loss"]) for epoch in run.row["history"])


def test_half_precision_keeps_head_and_loss_in_single(tiny):
    seen = []
    real = steps.Step.forward

    def forward(self, images, labels):
        layers = [self.encoder.backbone[0], self.encoder.head]
        hooks = [m.register_forward_hook(lambda m, i, out: seen.append(out.dtype)) for m in layers]
        value, broken = real(self, images, labels)
        seen.append(value.dtype)
        for hook in hooks:
            hook.remove()
        return value, broken

    with patch.object(steps.Step, "forward", forward):
        run = train(replace(SMALL, precision="bf16", epochs=15), progress=False)
    assert (
        set(seen[0::3]) == {torch.bfloat16}
        and set(seen[1::3]) == {torch.float32}
        and set(seen[2::3]) == {torch.float32}
    )
    assert run.metrics["recall_at_1"] > 0.5 and run.loss.proxies.dtype == torch.float32
    assert train(SMALL, progress=False).metrics  # another precision in the same process


def test_the_backbone_stands_still_during_warm_up(tiny):
    options = {"schedule": "constant", "epochs": 2, "learning_rate": 1e-3}
    torch.manual_seed(0)
    start = create_model("conv4", 12, width=4, channels=1).state_dict()
    warm, none = (
        train(replace(SMALL, warmup_epochs=n, **options), progress=False).model.state_dict()
        for n in (2, 0)
    )
    weights = [
        k
        for k in start
        if k.startswith("backbone") and "running" not in k and "num_batches" not in k
    ]
    assert all(torch.equal(start[k], warm[k]) for k in weights) and not torch.equal(
        start["head.1.weight"], warm["head.1.weight"]
    )
    assert not any(torch.equal(start[k], none[k]) for k in weights)


def test_gradients_are_clipped_by_value(tiny):
    seen, real = [], torch.optim.AdamW.step

    def step(self, *arguments, **options):
        seen.append(
            max(
                p.grad.abs().max().item()
                for group in self.param_groups[:2]
                for p in group["params"]
            )
        )
        return real(self, *arguments, **options)

    with patch.object(torch.optim.AdamW, "step", step):
        train(replace(SMALL, clip=1e-3), progress=False)
    assert max(seen) == pytest.approx(1e-3)


def test_every_preset_builds_and_names_its_data_set():
    from see_nb.data.benchmarks import BENCHMARKS

    for name, recipe in PRESETS.items():
        assert (
            recipe.dataset in BENCHMARKS
            and name == f"{recipe.dataset}-{recipe.backbone}-{recipe.embedding_size}"
        )
        assert (
            recipe.batch_size == 180
            and recipe.see
            and recipe.n_expansion == 8
            and recipe.weight == 0.2
        )


# Several processes

CONVNEXT = {
    "backbone": "test_convnext", "pretrained": False, "image_size": 32, "embedding_size": 12, "batch_size": 24,
    "validation": 0, "learning_rate": 1e-5, "schedule": "constant", "curriculum": "constant",
}  # fmt: skip
SAME = "htl", "hard_proxies", "smart_mining", "hdml", "daml"  # draw nothing, or the same
OTHER = "mic", "deep_ranking"  # draw triplets in each process


class Enough(Exception):
    pass


def first_steps(recipe, n, expand=False):
    "Losses and weights of the first steps, and the training."
    real, losses, last = training.Training.train_step, [], []

    def step(self, images, labels):
        if self.position == n:
            raise Enough
        if expand:
            self.objective.schedule = None  # from the start
        before = self.total.item()
        real(self, images, labels)
        losses.append(self.total.item() - before)
        last[:] = [self]

    with patch.object(training.Training, "train_step", step), contextlib.suppress(Enough):
        train(recipe, progress=False)
    parts = *last[0].model.parameters(), *last[0].objective.parameters()
    return {"losses": losses, "weights": [p.detach().clone() for p in parts]}, last[0]


def trained_together(folder, references):
    "What one process, or each of several, learns and finds."
    results = {}
    for see in (False, True):
        recipe = Recipe(**CONVNEXT, epochs=1, see=see, proxy_rate=1e3)
        results[see], state = first_steps(recipe, 10, expand=see)
    for name in references:
        how = (
            EXPANSIONS[name].recipe | {"expansion": name} if name in EXPANSIONS else {"loss": name}
        )
        few = {"epochs": 2, "train_classes": 20, "proxy_rate": 1e2, "n_expansion": 4}
        results[name], _ = first_steps(Recipe(**CONVNEXT | few | how), 4)
    torch.manual_seed(0)
    model = create_model("test_convnext", 12, pretrained=False, channels=1, image_size=32)
    test = load_dataset("glyphs", split="test").select_classes(torch.arange(101))
    options = {"image_size": 32, "batch_size": 64, "accelerator": state.accelerator}
    results["embeddings"] = embed(model, test, **options)
    results["metrics"] = evaluate(model, test, **options)
    torch.save(
        results, f"{folder}/{state.accelerator.process_index} of {state.accelerator.num_processes}"
    )


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    "What one process learns, and what two do that a launcher has started."
    folder = tmp_path_factory.mktemp("processes")
    trained_together(folder, SAME)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, __file__, folder], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / name) for name in ("0 of 1", "0 of 2", "1 of 2")]


def test_two_processes_train_as_one(one_and_two):
    one, two, other = one_and_two
    for see in (False, True):
        assert len(one[see]["losses"]) == len(two[see]["losses"]) == 10
        assert two[see]["losses"] == pytest.approx(one[see]["losses"], rel=1e-5)
        for a, b, c in zip(
            one[see]["weights"], two[see]["weights"], other[see]["weights"], strict=True
        ):
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
        recipe = Recipe(
            **CONVNEXT | {"validation": 0.2, "learning_rate": 1e-3}, train_classes=60, epochs=1
        )
        train(recipe, progress=False, results=path, checkpoint=f"{path}.pt")

    notebook_launcher(work, num_processes=2)


def test_a_notebook_launches_two_processes_and_gets_one_row(tmp_path):
    in_processes(launch_two, tmp_path / "rows.jsonl")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len(rows) == 1 and rows.processes[0] == 2 and rows.history[0][0]["recall_at_1"] > 0


# Data


def test_photos_are_checked_before_training_starts(tmp_path):
    from PIL import Image

    for label in range(6):
        (tmp_path / f"class {label}").mkdir()
        for i in range(4):
            Image.new("RGB", (40 + i, 30), (40 * label, 10 * i, 99)).save(
                tmp_path / f"class {label}" / f"{i}.jpg"
            )
    recipe = Recipe(
        dataset="folder",
        image_size=32,
        epochs=2,
        batch_size=4,
        validation=0.0,
        embedding_size=12,
        width=4,
    )
    with pytest.raises(ValueError, match="image_size: folder holds photos of many sizes"):
        train(replace(recipe, image_size=0), root=tmp_path, progress=False)
    assert train(recipe, root=tmp_path, progress=False).row["n_test_classes"] == 3
    for label in range(6):
        damaged = tmp_path / f"class {label}" / "2.jpg"
        damaged.write_bytes(damaged.read_bytes()[:150])
    taken = []
    with patch.object(training.Training, "train_step", lambda *a: taken.append(a)):
        for resize in (-1, 0):
            with pytest.raises(ValueError, match=r"class \d/2.jpg"):
                train(replace(recipe, resize=resize), root=tmp_path, progress=False)
    assert not taken
    with pytest.raises(ValueError, match=r"class \d/2.jpg"):  # without the check: at first use
        train(replace(recipe, resize=0), root=tmp_path, progress=False, check=False)


def test_queries_search_their_gallery_from_training_to_evaluation(see_nb_command, tmp_path):
    from PIL import Image

    lines, generator = [], torch.Generator().manual_seed(0)
    (tmp_path / "inshop" / "img").mkdir(parents=True)
    for item in range(16):
        colour = torch.randint(0, 200, (3,), generator=generator)
        for i in range(4):
            name = f"img/{item:02d}_{i}.jpg"
            pixels = (
                (colour + torch.randint(0, 56, (40, 30, 3), generator=generator))
                .to(torch.uint8)
                .numpy()
            )
            Image.fromarray(pixels).save(tmp_path / "inshop" / name)
            lines.append(
                f"{name} id_{item:08d} {'train' if item < 8 else 'query' if i < 2 else 'gallery'}"
            )
    text = "\n".join([str(len(lines)), "image_name item_id evaluation_status", *lines])
    (tmp_path / "inshop" / "list_eval_partition.txt").write_text(text)
    recipe = Recipe(
        dataset="inshop",
        allow_incomplete=True,
        image_size=32,
        epochs=3,
        batch_size=8,
        validation=0.0,
        embedding_size=12,
        width=4,
    )
    with pytest.warns(UserWarning, match="compare with no published number"):
        run = train(recipe, root=tmp_path, progress=False, checkpoint=tmp_path / "c.pt")
    assert (run.row["n_test"], run.row["n_test_classes"], set(run.metrics)) == (
        16,
        8,
        {"recall_at_1", "recall_at_10", "map_at_r"},
    )
    assert all(0 <= n < 16 for found in run.row["neighbours"].values() for n in found)
    done = see_nb_command("evaluate", "--checkpoint", tmp_path / "c.pt", "--root", tmp_path)
    assert (
        done.returncode == 0 and f"recall_at_1  {run.metrics['recall_at_1']:7.2%}" in done.stdout
    ), done.stderr


@pytest.fixture
def small_photos(tmp_path, monkeypatch):
    "A folder of 32 photos of 8 classes, with caches beside it."
    from PIL import Image

    monkeypatch.setenv("SEE_NB_DATA", str(tmp_path / "home"))
    generator = torch.Generator().manual_seed(0)
    for label in range(8):
        (tmp_path / "photos" / f"{label}").mkdir(parents=True)
        colour = torch.randint(0, 200, (3,), generator=generator)
        for i in range(4):
            noise = torch.randint(0, 56, (48, 40, 3), generator=generator)
            pixels = (colour + noise).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "photos" / f"{label}" / f"{i}.png")
    return tmp_path / "photos"


class Unit(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x)


CUT = Recipe(dataset="folder", backbone="resnet10t", pretrained=False, crops=3, image_size=32, epochs=4,
             batch_size=8, validation=0.0, embedding_size=12, learning_rate=1e-3, batch_norms="eval")  # fmt: skip


def test_settings_of_accelerate_from_elsewhere_do_not_count(tiny, monkeypatch):
    expected = train(SMALL, progress=False).row
    for name, value in (("GRADIENT_ACCUMULATION_STEPS", "8"), ("MIXED_PRECISION", "bf16")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
        assert different_fields(expected, train(SMALL, progress=False).row) == []
        assert os.environ[f"ACCELERATE_{name}"] == value


@pytest.mark.skipif(torch.cuda.is_available(), reason="for computers without a GPU")
def test_half_precision_that_only_a_gpu_has_is_refused(tiny):
    with pytest.raises(SeeError, match="fp16 needs a GPU"):
        train(replace(SMALL, precision="fp16"), progress=False)


@pytest.mark.parametrize("stage", ["backbone", "layer3"])
def test_what_comes_out_of_the_frozen_part_is_made_once(small_photos, tmp_path, stage):
    recipe = replace(CUT, frozen=stage)
    run = train(recipe, root=small_photos, progress=False)

    def kept():
        return {
            p: p.stat().st_ino for p in (tmp_path / "home" / "cache" / "features").glob("*.npy")
        }

    files = kept()
    assert len(files) == 2
    torch.manual_seed(0)
    start = training.empty_model(recipe, 3, pretrained=False)
    before, now = (m.backbone.state_dict() for m in (start, run.model))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], now[name])}
    assert moved == ({"layer4"} if stage == "layer3" else set())
    assert not torch.equal(start.head[1].weight, run.model.head[1].weight)
    again = train(recipe, root=small_photos, progress=False)
    assert (again.metrics, kept()) == (run.metrics, files)
    # through the whole network, or from what was kept: the same
    whole = training.evaluate(
        run.model, load_dataset("folder", small_photos, "test"), image_size=32
    )
    assert whole == pytest.approx(run.metrics)


@pytest.mark.parametrize("stage", ["", "layer3", "backbone"])
def test_the_raw_network_is_measured_before_training(small_photos, tmp_path, stage):
    start = training.empty_model(CUT, 3, pretrained=False)
    torch.save(start.backbone.state_dict(), tmp_path / "weights.pt")
    recipe = replace(CUT, weights=str(tmp_path / "weights.pt"), frozen=stage, epochs=2)
    row = train(recipe, root=small_photos, progress=False, raw=True).row
    features = nn.Sequential(training.Features(start), Unit())
    test_set = load_dataset("folder", small_photos, "test")
    expected = evaluate(features.eval(), test_set, image_size=32)
    raw = dict(row["raw"])
    assert raw.pop("embedding_size") == 512
    assert raw == pytest.approx(expected, abs=0.1 if stage == "layer3" else 1e-6)
    assert advice(row)
    assert not train(replace(SMALL, see=False), progress=False, raw=True).row["raw"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_network_frozen_up_to_a_stage_goes_on_to_the_bit(small_photos, tmp_path, precision):
    recipe = replace(CUT, frozen="layer3", precision=precision)
    whole = train(recipe, root=small_photos, progress=False, checkpoint=tmp_path / "whole.pt")

    class Stop(Exception):
        pass

    def watch(*_, **__):
        nonlocal left
        left -= 1
        if not left:
            raise Stop
        return {}

    left, kept = 3, {"checkpoint": tmp_path / "cut.pt", "root": small_photos, "progress": False}
    with pytest.raises(Stop):
        train(recipe, watch=watch, **kept)
    assert "row" not in read_checkpoint(tmp_path / "cut.pt")
    cut = train(recipe, resume=True, **kept)
    assert same_weights(*(read_checkpoint(tmp_path / f"{n}.pt") for n in ("whole", "cut")))
    assert different_fields(whole.row, cut.row) == []
    model = load_model(tmp_path / "cut.pt")[1]
    assert torch.equal(model.head[1].weight, cut.model.head[1].weight)


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
    dataset_states()["omniglot"]["state"] != "there and complete",
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


if __name__ == "__main__":  # one of the two processes
    trained_together(sys.argv[1], [*SAME, *OTHER])
