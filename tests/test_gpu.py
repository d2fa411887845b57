"What needs a GPU: its parts tried small on a CPU, the clock, and going on."

from dataclasses import replace

import pandas as pd
import pytest
import torch

from see_nb.errors import SeeError
from see_nb.experiments import gpu
from see_nb.experiments.evidence import labelled
from see_nb.experiments.gpu import PLANS, all_checks, check_table, gpu_evidence, whole_table
from see_nb.experiments.plans import part_searches
from see_nb.training.recipes import Recipe
from see_nb.training.results import different_fields, read_rows
from see_nb.training.splits import Splits
from see_nb.training.steps import ClassBatches

THERE = torch.cuda.is_available()
cuda = pytest.mark.skipif(not THERE, reason="there is no GPU that torch can use")
no_cuda = pytest.mark.skipif(THERE, reason="there is a GPU")
SMALL = Recipe(embedding_size=12, epochs=2, width=4, batch_size=24, validation=0.0)
STEP = replace(SMALL, image_size=32)
WHOLE = replace(
    PLANS["cpu"].whole, recipes={"tiny": SMALL}, sizes=(12,), seeds=2, rates=((0.01,), (10.0,))
)
PLAN = replace(PLANS["cpu"], steps={"conv4": STEP}, compiled=(), whole=WHOLE)
DEVICE = "cuda" if THERE else "cpu"


@no_cuda
def test_without_a_gpu_the_command_says_so_in_one_line(see_nb_command, tmp_path):
    done = see_nb_command("gpu-evidence", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "expected a GPU" in done.stderr and "--device cpu" in done.stderr
    assert not list(tmp_path.iterdir())


@cuda
def test_with_a_gpu_the_cpu_is_refused(tmp_path):
    with pytest.raises(SeeError, match="CUDA_VISIBLE_DEVICES="):
        gpu_evidence(tmp_path / "gpu.jsonl", device="cpu")


def test_all_parts_run_and_a_second_call_makes_nothing_again(tiny, tmp_path):
    path = tmp_path / "gpu.jsonl"
    assert gpu_evidence(path, device=DEVICE, plan=PLAN)
    rows, content = read_rows(path), path.read_bytes()
    checks = rows[rows.experiment == "gpu checks"]
    assert checks.run.tolist() == list(all_checks(PLAN, DEVICE))
    assert "failed" not in rows and set(checks.device) == {DEVICE}
    assert checks.commit.str.len().gt(0).all() and checks.hardware.str.len().gt(0).all()
    trained = rows[rows.experiment == "evidence whole"]
    assert trained.seed.tolist() == [0, 0, 0, 1, 1, 1]
    assert labelled(trained).arm.tolist() == 2 * list(WHOLE.settings)
    table = whole_table(rows)
    assert table.arm.tolist() == list(WHOLE.settings)
    assert table.n.dropna().tolist() == [2, 2] and table.difference.isna().tolist()[0]
    assert len(check_table(rows)) == len(checks)
    assert gpu_evidence(path, device=DEVICE, plan=PLAN) and path.read_bytes() == content


def test_the_trainings_that_are_tried_on_a_cpu_have_classes_enough():
    (search,) = part_searches(PLANS["cpu"].whole)
    for recipe in (search[0], replace(search[0], validation=0.0)):
        train_set = Splits.load(recipe).train_set
        assert len(ClassBatches(train_set.labels, recipe)) > 1


def test_a_training_that_the_clock_cuts_off_goes_on_where_it_was(tiny, tmp_path):
    part = replace(WHOLE, seeds=1)
    steps = {"whole": 0, "cut": 0, "rest": 0}

    def clock(name, limit):
        def used():
            steps[name] += 1
            return float(steps[name] > limit) * 2

        return used

    folders = {name: tmp_path / name / "gpu.jsonl" for name in ("whole", "cut")}
    assert gpu._train_whole(part, folders["whole"], clock("whole", 10**9), None)
    limit = steps["whole"] * 2 // 3
    assert not gpu._train_whole(part, folders["cut"], clock("cut", limit), None)
    done = read_rows(folders["cut"])
    assert gpu._train_whole(part, folders["cut"], clock("rest", 10**9), None)
    expected, found = (read_rows(path) for path in folders.values())
    assert 0 < len(done) < len(expected) == len(found) == found.fingerprint.nunique()
    epoch = 160 // SMALL.batch_size  # steps that are done twice at most: those since a checkpoint
    assert steps["whole"] < steps["cut"] + steps["rest"] <= steps["whole"] + epoch
    if DEVICE == "cpu":
        for one, other in zip(expected.to_dict("records"), found.to_dict("records")):
            assert different_fields(one, other) == []


def test_what_fails_makes_a_row_and_the_others_go_on(tmp_path):
    broken = replace(PLAN, steps={"broken": replace(STEP, image_size=0)})
    checks = {name: gpu.tried(check) for name, check in all_checks(broken, DEVICE).items()}
    failed = [name for name, row in checks.items() if "failed" in row]
    assert failed == ["step, broken", "memory, broken"]
    about = {"experiment": "gpu checks", "device": "cuda", "hardware": "a GPU"}
    table = check_table(pd.DataFrame([{"run": n, **row, **about} for n, row in checks.items()]))
    assert table.verdict.tolist() == ["met"] * 3 + ["failed"] * 2 + [""]
    assert "Error: " in table.measured[3]


def test_no_time_begins_nothing(tmp_path):
    path = tmp_path / "gpu.jsonl"
    assert not gpu_evidence(path, minutes=1e-9, device=DEVICE, plan=PLAN)
    assert not len(read_rows(path)) and not len(check_table(read_rows(path)))
    for minutes in (0, -1, float("nan")):
        with pytest.raises(SeeError, match="^minutes: expected more than 0, got "):
            gpu_evidence(path, minutes=minutes, device=DEVICE, plan=PLAN)


@cuda
@pytest.mark.parametrize("name", gpu._WAITS)
def test_see_does_not_make_the_host_wait(name):
    row = gpu.waits_row((180, 100, 128), "cuda", **gpu._WAITS[name])
    assert row["value"] == row["base_value"] > 0


@cuda
def test_the_expansion_compiles_on_a_gpu():
    row = gpu.compiled_expansion((72, 100, 128), "cuda", "inductor")
    assert row["error"] < 1e-5 and row["breaks"] == 0
