"Report notebooks show what the rows say: their tables against a few lines of plain Python, and one row changed at a time."

import base64
import io
import json
import re
import shutil
import statistics
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import run_cells
from IPython.display import display
from PIL import Image

from see_nb import cli
from see_nb.experiments.paper_table import AS_PUBLISHED, TABLE_CELL, read_paper, side_by_side
from see_nb.training.presets import preset

KEY = [*TABLE_CELL, "metric"]
NAMES = {  # of the runs below, in the paper's words
    ("cub200", "deit_small", "proxy_anchor", True): (
        AS_PUBLISHED,
        "DeiT-S/16 distilled",
        "CUB-200-2011",
    ),
    ("cub200", "deit_small", "hyp", False): ("Hyp", "DeiT-S/16 distilled", "CUB-200-2011"),
    ("inshop", "resnet50", "proxy_anchor", False): ("PA", "ResNet-50", "In-Shop"),
}


def finished(name: str, recall: float, ks=(1, 2, 4, 8), **changes) -> dict:
    "The row of a run with made-up metrics."
    metrics = {f"recall_at_{k}": recall + 0.001 * k for k in ks}
    where = {
        "experiment": "benchmarks",
        "hardware": "none",
        "threads": 1,
        "commit": "none",
        "seconds": 3600,
        "frames": "independent",
    }
    return asdict(preset(name, **changes)) | metrics | where


@pytest.fixture
def rows() -> list[dict]:
    "Three cells with three, two and one seeds, and three runs that must not count."
    see = [finished("cub200-deit_small-128", r, seed=s) for s, r in enumerate((0.70, 0.73, 0.71))]
    hyp = [
        finished("cub200-deit_small-128", r, seed=s, loss="hyp", see=False)
        for s, r in enumerate((0.65, 0.69))
    ]
    alone = [finished("inshop-resnet50-512", 0.9, (1, 10, 20, 30), see=False)]
    refused = [
        finished("cub200-deit_small-128", 0.99, seed=5, **c)
        for c in ({"epochs": 2}, {"weight": 0.3}, {"allow_incomplete": True})
    ]
    return see + hyp + alone + refused


def by_hand(rows: list[dict], paper: pd.DataFrame) -> dict[tuple, tuple]:
    "Mean, standard deviation and n of each number, without the package."
    shares = defaultdict(list)
    for row in rows:
        if row["epochs"] < 100 or row["weight"] != 0.2 or row["allow_incomplete"]:
            continue
        method, backbone, dataset = NAMES[row["dataset"], row["backbone"], row["loss"], row["see"]]
        for metric in set(paper.metric[paper.dataset == dataset]):
            shares[method, backbone, row["embedding_size"], dataset, metric].append(
                100 * row[metric.replace("R@", "recall_at_")]
            )
    return {
        key: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else None, len(v))
        for key, v in shares.items()
    }


@pytest.fixture
def main_table(root, tmp_path, monkeypatch):
    "Run notebook 20 on rows, up to its files; gives its csv and its LaTeX."
    source = root / "nbs" / "experiments/benchmarks_report.ipynb"
    shutil.copytree(
        root / "nbs" / "experiments" / "paper", tmp_path / "nbs" / "experiments" / "paper"
    )
    output = tmp_path / "output"
    monkeypatch.chdir(tmp_path / "nbs" / "experiments")
    monkeypatch.setenv("SEE_NB_OUTPUT", str(output))

    def run(benchmarks: list[dict], trained: list[dict]) -> tuple[pd.DataFrame, str]:
        for path, part in (
            (output / "benchmarks.jsonl", benchmarks),
            (tmp_path / "runs" / "a" / "results.jsonl", trained),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
        names = {"display": display}
        for cell in nbformat.read(source, as_version=4).cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
                if "table1.tex" in cell.source:
                    break
        return pd.read_csv(output / "table1.csv"), (output / "table1.tex").read_text()

    return run


def test_the_main_table_is_what_the_rows_say(rows, main_table, root):
    table, latex = main_table(rows[:4], rows[4:])
    paper = read_paper(root / "nbs" / "experiments" / "paper" / "table1.csv")
    expected = by_hand(rows, paper)
    ours = table[table.n > 0].set_index(KEY)
    assert set(ours.index) == set(expected) and len(expected) == 9
    for key, (mean, std, n) in expected.items():
        assert ours.loc[key, "mean"] == pytest.approx(mean) and ours.loc[key, "n"] == n
        assert (
            pd.isna(ours.loc[key, "std"])
            if std is None
            else ours.loc[key, "std"] == pytest.approx(std)
        )
        spread = "" if std is None else rf" $\pm$ {std:.1f}"
        assert f"$|$ {mean:.1f}{spread} ({n})" in latex
    printed = table.dropna(subset="paper").replace({"method": {AS_PUBLISHED: "SEE"}})
    assert printed.set_index(KEY).paper.to_dict() == paper.set_index(KEY).percent.to_dict()
    assert table.command.isna().eq(table.n > 0).all()


def test_a_row_changes_its_own_numbers_and_no_others(rows, root):
    paper = read_paper(root / "nbs" / "experiments" / "paper" / "table1.csv")
    before = side_by_side(paper, pd.DataFrame(rows))
    for number, changed in ((1, 3), (3, 3), (5, 3), (6, 0), (8, 0)):
        row = rows[number]
        other = [
            *rows[:number],
            row | {k: v / 2 for k, v in row.items() if k.startswith("recall")},
            *rows[number + 1 :],
        ]
        after = side_by_side(paper, pd.DataFrame(other))
        different = (after.fillna(-1) != before.fillna(-1)).any(axis=1)
        assert different.sum() == changed
        if changed:
            method, backbone, dataset = NAMES[
                row["dataset"], row["backbone"], row["loss"], row["see"]
            ]
            assert before[different].drop_duplicates(TABLE_CELL)[TABLE_CELL].values.tolist() == [
                [method, backbone, row["embedding_size"], dataset]
            ]


def test_the_run_of_a_command_fills_the_blank_beside_it(root, monkeypatch):
    paper = read_paper(root / "nbs" / "experiments" / "paper" / "table1.csv")
    blank = side_by_side(paper, pd.DataFrame()).drop_duplicates(TABLE_CELL)
    blank = blank[blank.command.str.startswith("see-nb train ")]
    started = []

    class Started(Exception):
        "Before it costs hours."

    def train(recipe, **options):
        started.append(recipe)
        raise Started

    monkeypatch.setattr("see_nb.training.training.train", train)
    for line in blank.groupby(["method", "embedding_size"], sort=False).head(1).itertuples():
        with pytest.raises(Started):
            cli.main(line.command.split()[1:])
        row = asdict(started[-1]) | {"recall_at_1": 0.5, "frames": "independent"}
        table = side_by_side(paper, pd.DataFrame([row]))
        assert table[table.n > 0][TABLE_CELL].values.tolist() == [
            [getattr(line, name) for name in TABLE_CELL]
        ]
    assert len(started) > 5


def outputs(notebook: nbformat.NotebookNode) -> list[list[tuple[str, str]]]:
    "What each code cell shows: text, tables without the random names of their styles, pictures."
    shown = []
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        parts = [
            (
                "text",
                "".join(
                    o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"
                ),
            )
        ]
        for data in (o.data for o in cell.outputs if "data" in o):
            kind = next(k for k in ("image/png", "text/html", "text/plain") if k in data)
            parts.append((kind, re.sub(r"\bT_[0-9a-f]+", "T", data[kind])))
        shown.append(parts)
    return shown


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), dtype=float)


REPORTS = sorted(
    path.stem for path in (Path(__file__).parents[1] / "nbs" / "experiments").glob("*_report.ipynb")
)


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_comes_back_the_same_from_the_committed_rows(root, name, tmp_path):
    path = root / "nbs" / "experiments" / f"{name}.ipynb"
    committed = outputs(nbformat.read(path, as_version=4))
    again = outputs(run_cells(path, tmp_path / "again.ipynb"))
    assert any(committed)
    for number, (old, new) in enumerate(zip(committed, again, strict=True)):
        assert [kind for kind, _ in old] == [kind for kind, _ in new], f"cell {number}"
        for (kind, before), (_, now) in zip(old, new):
            if kind == "image/png":
                one, two = pixels(before), pixels(now)
                assert one.shape == two.shape and abs(one - two).mean() < 2, (
                    f"cell {number}: another picture"
                )
            else:
                assert before == now, f"cell {number}"
