"What needs a GPU: its parts tried small on a CPU, the clock, and going on."

from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from see_nb.experiments import gpu
from see_nb.experiments.evidence import labelled
from see_nb.experiments.gpu import PLANS, all_checks, check_table, gpu_evidence, whole_table
from see_nb.experiments.plans import part_searches
from see_nb.method.expansion import expand, expansion_errors
from see_nb.training.recipes import Recipe
from see_nb.training.results import different_fields, read_rows
from see_nb.training.splits import Splits
from see_nb.training.steps import ClassBatches

THERE = torch.cuda.is_available()
DEVICE = "cuda" if THERE else "cpu"
cuda = pytest.mark.skipif(not THERE, reason="there is no GPU that torch can use")
SMALL = Recipe(embedding_size=12, epochs=2, width=4, batch_size=24, validation=0.0)
STEP = replace(SMALL, image_size=32)
WHOLE = replace(
    PLANS["cpu"].whole, recipes={"tiny": SMALL}, sizes=(12,), seeds=2, rates=((0.01,), (10.0,))
)
PLAN = replace(PLANS["cpu"], steps={"conv4": STEP}, whole=WHOLE)


def test_another_device_is_refused_in_one_sentence(see_nb_command, tmp_path):
    done = see_nb_command("gpu-evidence", "--device", "cpu" if THERE else "cuda", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"expected {DEVICE}" in done.stderr
    assert "CUDA_VISIBLE_DEVICES= see-nb gpu-evidence --device cpu" in done.stderr
    assert not list(tmp_path.iterdir())


def test_all_parts_run_and_a_second_call_makes_nothing_again(tiny, tmp_path):
    path = tmp_path / "gpu.jsonl"
    assert not gpu_evidence(path, minutes=1e-9, device=DEVICE, plan=PLAN)  # no time begins nothing
    assert not len(read_rows(path)) and not len(check_table(read_rows(path)))
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


def test_a_training_that_the_clock_cuts_off_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    plan, epochs = replace(PLAN, whole=replace(WHOLE, seeds=1)), {}
    files = {name: tmp_path / name / "gpu.jsonl" for name in ("whole", "cut")}
    monkeypatch.setattr(gpu, "all_checks", lambda *_: {})

    def call(name, most):
        "With time for so many epochs."

        def used(start, minutes):
            epochs[name] = epochs.get(name, 0) + 1
            return 2.0 * (epochs[name] > most)

        monkeypatch.setattr(gpu, "_share_used", used)
        return gpu_evidence(files[name.split()[0]], device=DEVICE, plan=plan)

    assert call("whole", 10**9) and not call("cut", epochs["whole"] * 2 // 3)
    done = read_rows(files["cut"])
    assert call("cut again", 10**9)
    expected, found = (read_rows(path) for path in files.values())
    assert 0 < len(done) < len(expected) == len(found) == found.fingerprint.nunique()
    assert epochs["cut"] + epochs["cut again"] == epochs["whole"] + 1  # the one that was cut off
    if DEVICE == "cpu":
        for one, other in zip(expected.to_dict("records"), found.to_dict("records")):
            assert different_fields(one, other) == []


def test_what_fails_makes_a_row_and_the_others_go_on():
    broken = replace(PLAN, steps={"broken": replace(STEP, image_size=0)})
    checks = {name: gpu.tried(check) for name, check in all_checks(broken, DEVICE).items()}
    failed = [name for name, row in checks.items() if "failed" in row]
    assert failed == ["step, broken"]
    about = {"experiment": "gpu checks", "device": "cuda", "hardware": "a GPU"}
    table = check_table(pd.DataFrame([{"run": n, **row, **about} for n, row in checks.items()]))
    assert table.verdict.tolist() == ["met"] * 3 + ["failed"]
    assert "Error: " in table.measured[3]


@cuda
@pytest.mark.parametrize("name", gpu._WAITS)
def test_see_does_not_make_the_host_wait(name):
    row = gpu.waits_row((180, 100, 128), "cuda", **gpu._WAITS[name])
    assert row["value"] == row["base_value"] > 0


@cuda
def test_the_expansion_compiles_on_a_gpu():
    z, w = (F.normalize(torch.randn(72, 128, device="cuda"), dim=-1) for _ in range(2))
    made = torch.compile(expand, fullgraph=True)(z, w, 8)
    assert max(expansion_errors(z, w, made).values()) < 1e-5
