"Costs: how they are measured, and what the committed rows hold. No speed is asked for here."

import json
from itertools import groupby
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import run_cells
from pytorch_metric_learning.losses import ProxyAnchorLoss

from see_nb.experiments.cost import compared, in_child, log_slope, peak_bytes, take_turns
from see_nb.method.see_loss import SEELoss
from see_nb.training.results import append_row, read_rows


@pytest.fixture(scope="module")
def rows(root):
    "The committed measurements."
    return read_rows(root / "nbs" / "experiments" / "results" / "cost.jsonl")


def test_functions_take_turns():
    called = []
    times = take_turns(
        {name: lambda name=name: called.append(name) for name in "ab"}, rounds=3, seconds=0
    )
    assert "".join(name for name, _ in groupby(called)) == "ab" * 4  # to warm up, then in turns
    assert times.shape == (3, 2) and (times > 0).all(axis=None)
    found = compared(times, "a", "b")
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    json.dumps(found, allow_nan=False)


def test_memory_of_a_step_is_the_same_each_time_and_more_with_more_synthetics():
    torch.manual_seed(0)
    loss, x, labels = (
        ProxyAnchorLoss(20, 64),
        torch.randn(40, 64, requires_grad=True),
        torch.arange(40) // 2,
    )
    peaks = {}
    for k in (0, 4, 32):
        module = SEELoss(loss, k) if k else loss
        peaks[k] = [
            peak_bytes(lambda: torch.autograd.grad(module(x, labels), [x, loss.proxies]))
            for _ in range(3)
        ][1:]  # the first fills caches
    assert all(first == second for first, second in peaks.values())
    assert 0 < peaks[0][0] <= peaks[4][0] < peaks[32][0]
    assert peaks[32][0] > 16 * 32 * 64 * 4  # the synthetics alone: 40 % of 40 sources, float32


def test_the_memory_of_a_child_is_its_own():
    mine = torch.ones(50_000_000)  # 200 MB
    small, large = (
        in_child("", "answer = 1"),
        in_child("", "x = bytearray(100_000_000); answer = 2", calls=2),
    )
    assert (small["answer"], large["answer"]) == (1, 2)
    assert small["peak_bytes"] < mine.nbytes / 2
    assert 1e8 <= large["peak_bytes"] - large["start_bytes"] < 2.5e8


def test_the_committed_rows_are_one_run_of_each_kind_and_hold_together(rows):
    assert (
        rows.groupby("what").finished.nunique().eq(1).all()
        and rows.processor.str.len().gt(0).all()
        and rows.experiment.eq("cost").all()
    )
    assert {"expansion", "loss", "step", "evaluation"} <= set(rows.what)
    measured = rows[rows.ratio.notna()]
    assert (measured.ratio_low <= measured.ratio).all() and (
        measured.ratio <= measured.ratio_high
    ).all()
    assert (measured[["value", "base_value", "ratio", "rounds"]] > 0).all(axis=None)
    once = measured[measured.rounds == 1]
    assert (once.ratio - once.value / once.base_value).abs().max() < 1e-9
    assert rows[rows.ratio.isna() & (rows.what != "whole")].failed.str.len().gt(0).all()
    sizes = [
        "what",
        "unit",
        "side",
        "base",
        "dataset",
        "metric",
        "backbone",
        "batch_size",
        "n_expansion",
        "n_classes",
        "embedding_size",
    ]
    assert not rows.duplicated(sizes).any()


def test_the_memory_of_synthetics_grows_as_their_number(rows):
    for axis, fixed in (
        ("n_expansion", {"embedding_size": 128, "n_classes": 11_318}),
        ("n_classes", {"embedding_size": 128, "n_expansion": 8}),
    ):
        found = rows[(rows.what == "loss") & (rows.unit == "bytes") & (rows.side == "second term")]
        for column, value in fixed.items():
            found = found[found[column] == value]
        found = found[
            found[axis] >= found[axis].median()
        ]  # where the table of synthetics times classes is most of it
        assert 0.5 < log_slope(found[axis].tolist(), found.value.tolist())[0] < 1.1


def run_here(root, name: str, folder: Path) -> nbformat.NotebookNode:
    "A notebook of the costs as `see-nb reproduce` runs it in its quick preset."
    environment = {"SEE_NB_PRESET": "quick", "SEE_NB_OUTPUT": str(folder)}
    path = root / "nbs" / "experiments" / f"{name}.ipynb"
    return run_cells(path, folder / f"{name}.ipynb", **environment)


def test_quick_measures_nothing_and_the_report_shows_the_committed_rows(root, tmp_path):
    run_here(root, "cost_run", tmp_path)
    assert not (tmp_path / "cost.jsonl").exists()
    text = printed(run_here(root, "cost_report", tmp_path))
    assert "results/cost.jsonl" in text
    there = (root / "nbs" / "experiments" / "results" / "gpu.jsonl").exists()
    assert ("results/gpu.jsonl" in text) == there == ("Not measured: no machine" not in text)


def test_the_report_says_what_was_not_measured_and_what_failed(root, tmp_path, rows):
    failed = {"ratio", "ratio_low", "ratio_high", "value", "base_value", "rounds"}
    for row in map(
        json.loads,
        (root / "nbs" / "experiments" / "results" / "cost.jsonl").read_text().splitlines(),
    ):
        if row["what"] == "step" and row["backbone"] == "vit_small":
            continue
        if (
            row["what"] == "evaluation"
            and row.get("dataset") == "sop"
            and row.get("metric") == "Recall@K"
        ):
            row = {key: value for key, value in row.items() if key not in failed} | {
                "failed": "see_nb: did not finish in 150 s"
            }
        append_row(row, tmp_path / "cost.jsonl")
    gpu = {"experiment": "gpu checks", "device": "cuda", "hardware": "a GPU", "what": "waits"}
    counted = {"run": "waits, as published", "value": 5, "base_value": 2}
    append_row(gpu | counted, tmp_path / "gpu.jsonl")
    text = printed(run_here(root, "cost_report", tmp_path))
    assert (
        "Rows: cost.jsonl" in text
        and "did not finish in 150 s" in text
        and "not measured in this run" in text
    )
    assert "+3 (the loss alone: 2)" in text and "Not measured: no machine" not in text


def printed(notebook: nbformat.NotebookNode) -> str:
    "All text and tables."
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/html", "") for output in outputs
    )
