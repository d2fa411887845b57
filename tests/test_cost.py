"Costs: how they are measured, and what the committed rows hold. No speed is asked for here."

import json

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_cells
from pytorch_metric_learning.losses import ProxyAnchorLoss

from see_nb.experiments.cost import STEP_BUDGET, peak_bytes
from see_nb.method.see_loss import SEELoss
from see_nb.training.results import append_row, read_rows

SIZES = ["backbone", "batch_size", "n_expansion", "n_classes", "embedding_size"]
NAMES = ["what", "unit", "side", "base", "dataset", "metric"]


@pytest.fixture(scope="module")
def rows(root):
    "The committed measurements."
    return read_rows(root / "nbs" / "experiments" / "results" / "cost.jsonl")


def rows_with(rows: pd.DataFrame, wanted: dict) -> pd.DataFrame:
    return rows[(rows[list(wanted)] == pd.Series(wanted)).all(axis=1)]


@pytest.fixture(scope="module")
def report(root) -> dict:
    "What the report's cell on budgets defines."
    cells = nbformat.read(root / "nbs" / "experiments" / "cost_report.ipynb", 4).cells
    names = {"STEP_BUDGET": STEP_BUDGET}
    exec(next(cell.source for cell in cells if "BUDGETS = [" in cell.source), names)
    return names


def test_a_ratio_is_judged_by_its_quartiles_and_other_numbers_by_themselves(report):
    verdict = report["verdict"]
    for low, high, word in ((0.99, 1.02, "met"), (1.0, 1.05, "open"), (1.04, 1.05, "not met")):
        assert verdict({"ratio_low": low, "ratio_high": high}, "≤", STEP_BUDGET, "ratio") == word
    for best, word in ((61, "met"), (59, "not met")):
        assert verdict({"best": best}, "≥", 60, "best") == word


def test_memory_of_a_step_is_the_same_each_time_and_more_with_more_synthetics():
    torch.manual_seed(0)
    loss, labels = ProxyAnchorLoss(20, 64), torch.arange(40) // 2
    x, peaks = torch.randn(40, 64, requires_grad=True), {}
    for k in (0, 4, 32):
        module = SEELoss(loss, k) if k else loss
        step = lambda module=module: torch.autograd.grad(module(x, labels), [x, loss.proxies])
        peaks[k] = [peak_bytes(step) for _ in range(3)][1:]  # the first fills caches
    assert all(first == second for first, second in peaks.values())
    assert 0 < peaks[0][0] <= peaks[4][0] < peaks[32][0]
    assert peaks[32][0] > 16 * 32 * 64 * 4  # the synthetics alone: 40 % of 40 sources, float32


def test_the_committed_rows_are_one_run_of_each_kind_and_hold_together(rows, report):
    assert rows.groupby("what").finished.nunique().eq(1).all()
    assert rows.processor.str.len().gt(0).all() and rows.experiment.eq("cost").all()
    measured = rows[rows.ratio.notna()]
    assert (measured.ratio_low <= measured.ratio).all()
    assert (measured.ratio <= measured.ratio_high).all()
    assert (measured[["value", "base_value", "ratio", "rounds"]] > 0).all(axis=None)
    once = measured[measured.rounds == 1]
    assert (once.ratio - once.value / once.base_value).abs().max() < 1e-9
    assert rows[rows.ratio.isna() & (rows.what != "whole")].failed.str.len().gt(0).all()
    assert not rows.duplicated(NAMES + SIZES).any()
    assert {len(rows_with(rows, wanted)) for _, wanted, *_ in report["BUDGETS"]} == {1}


@pytest.mark.parametrize(
    "axis, fixed",
    [
        ("n_expansion", {"embedding_size": 128, "n_classes": 11_318}),
        ("n_classes", {"embedding_size": 128, "n_expansion": 8}),
    ],
)
def test_the_memory_of_synthetics_grows_as_their_number(rows, axis, fixed):
    wanted = {"what": "loss", "unit": "bytes", "side": "second term", **fixed}
    found = rows_with(rows, wanted)
    found = found[found[axis] >= found[axis].median()]  # synthetics times classes is most of it
    assert 0.5 < np.polyfit(np.log(found[axis]), np.log(found.value), 1)[0] < 1.1


def test_the_report_says_what_was_not_measured_and_what_failed(root, tmp_path):
    folder = root / "nbs" / "experiments"
    committed = (folder / "results" / "cost.jsonl").read_text()
    for row in map(json.loads, committed.splitlines()):
        searched = row["what"] == "evaluation" and row.get("metric") == "Recall@K"
        if searched and row["dataset"] == "sop":
            measured = {"ratio", "ratio_low", "ratio_high", "value", "base_value", "rounds"}
            row = {key: value for key, value in row.items() if key not in measured}
            row["failed"] = "see_nb: did not finish in 150 s"
        if row.get("backbone") != "vit_small":
            append_row(row, tmp_path / "cost.jsonl")
    gpu = {"experiment": "gpu checks", "device": "cuda", "hardware": "a GPU", "what": "waits"}
    counted = {"run": "waits, as published", "value": 5, "base_value": 2}
    append_row(gpu | counted, tmp_path / "gpu.jsonl")
    place = {"SEE_NB_OUTPUT": str(tmp_path)}
    notebook = run_cells(folder / "cost_report.ipynb", tmp_path / "report.ipynb", **place)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    text = "\n".join(out.get("text") or out["data"].get("text/html", "") for out in outputs)
    for words in ("Rows: cost.jsonl", "did not finish in 150 s", "not measured in this run"):
        assert words in text
    assert "+3 (the loss alone: 2)" in text and "Not measured: no machine" not in text
