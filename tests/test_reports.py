"Report notebooks show what the rows say: their tables against a few lines of plain Python."

import base64
import io
import json
import re
import shutil
import statistics
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
from see_nb.experiments.plans import AS_PUBLISHED
from see_nb.training.presets import preset

EXPERIMENTS = Path(__file__).parents[1] / "nbs" / "experiments"


def finished(name: str, recalls: tuple[float, ...], ks=(1, 2, 4, 8), **changes) -> list[dict]:
    "Rows of runs with made-up metrics, one a seed."
    facts = {"experiment": "benchmarks", "hardware": "none", "threads": 1, "commit": "none"}
    facts |= {"seconds": 3600, "frames": "independent", "weights_sha256": "none"}
    return [
        asdict(preset(name, seed=seed, **changes))
        | {f"recall_at_{k}": recall + 0.001 * k for k in ks}
        | facts
        for seed, recall in enumerate(recalls)
    ]


def benchmark_cells() -> list[str]:
    "The code of the report on the paper's table."
    report = nbformat.read(EXPERIMENTS / "benchmarks_report.ipynb", 4)
    return [cell.source for cell in report.cells if cell.cell_type == "code"]


def test_the_main_table_is_what_the_rows_say(tmp_path, monkeypatch):
    good = finished("cub200-deit_small-128", (0.70, 0.73, 0.71))
    wrong = ({"epochs": 2}, {"weight": 0.3}, {"width": 8}, {"loss": "hyp"})
    wrong = [finished("cub200-deit_small-128", (0.99,), **changes)[0] for changes in wrong]
    wrong += [good[0] | {"recall_at_1": 0.99}, good[1] | {"frames": "shared", "seed": 7}]
    one = finished("inshop-resnet50-512", (0.9,), (1, 10, 20, 30), see=False)
    here, output = tmp_path / "nbs" / "experiments", tmp_path / "runs" / "a"
    for name in ("paper", "results"):
        shutil.copytree(EXPERIMENTS / name, here / name)
    output.mkdir(parents=True)
    for name, part in (("benchmarks", good), ("results", [*wrong, *one])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (output / f"{name}.jsonl").write_text(text)
    monkeypatch.chdir(here)
    monkeypatch.setenv("SEE_NB_OUTPUT", str(output))
    names = {"display": display}
    for source in benchmark_cells():
        exec(source, names)
        if "table1.tex" in source:
            break
    paper, latex = pd.read_csv("paper/table1.csv"), (output / "table1.tex").read_text()
    table, cell = pd.read_csv(output / "table1.csv"), names["TABLE_CELL"]
    own = table[table.n > 0].set_index(["line", "metric"])
    assert own.n.to_dict() == {(AS_PUBLISHED, m): 3 for m in ("R@1", "R@2", "R@4")} | {
        ("PA", m): 1 for m in ("R@1", "R@10", "R@20")
    }
    assert own["mean"][AS_PUBLISHED, "R@1"] == pytest.approx(71.433, abs=1e-3)
    assert own["std"][AS_PUBLISHED, "R@1"] == pytest.approx(statistics.stdev((70, 73, 71)))
    assert r"$|$ 71.4 $\pm$ 1.5 (3)" in latex and r"$|$ 90.1 (1)" in latex
    printed = table.dropna(subset="paper").replace({"line": {AS_PUBLISHED: "SEE"}})
    paper = paper.rename(columns={"method": "line"})
    key = [*cell, "metric"]
    assert printed.set_index(key).paper.to_dict() == paper.set_index(key).percent.to_dict()
    assert table.command.isna().eq(table.n > 0).all()


def test_the_run_of_a_command_fills_the_blank_beside_it(monkeypatch):
    names, paper = {}, pd.read_csv(EXPERIMENTS / "paper" / "table1.csv")
    for source in benchmark_cells():
        if source.startswith("#| hide"):
            exec(source, names)
    side_by_side, cell = names["side_by_side"], names["TABLE_CELL"]
    paper = paper.rename(columns={"method": "line"})
    blank = side_by_side(paper, pd.DataFrame()).drop_duplicates(cell)
    blank = blank[blank.command.str.startswith("see-nb train ")]
    started = []

    class Started(Exception):
        "Before it costs hours."

    def train(recipe, **options):
        started.append(recipe)
        raise Started

    monkeypatch.setattr("see_nb.training.training.train", train)
    for line in blank.groupby(["line", "embedding_size"], sort=False).head(1).to_dict("records"):
        with pytest.raises(Started):
            cli.main(line["command"].split()[1:])
        row = asdict(started[-1]) | {"recall_at_1": 0.5, "frames": "independent"}
        table = side_by_side(paper, pd.DataFrame([row]))
        filled = table[table.n > 0][cell].to_dict("records")
        assert filled == [{name: line[name] for name in cell}]
    assert len(started) > 5


def outputs(notebook: nbformat.NotebookNode) -> list[list[tuple[str, str]]]:
    "What each code cell shows: text, tables without the random names of their styles, pictures."
    shown = []
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        said = (o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
        parts = [("text", "".join(said))]
        for data in (o.data for o in cell.outputs if "data" in o):
            kind = next(k for k in ("image/png", "text/html", "text/plain") if k in data)
            parts.append((kind, re.sub(r"\bT_[0-9a-f]+", "T", data[kind])))
        shown.append(parts)
    return shown


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), dtype=float)


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("*_report.ipynb")))
def test_a_report_comes_back_the_same_from_the_committed_rows(name, tmp_path):
    path = EXPERIMENTS / f"{name}.ipynb"
    committed = outputs(nbformat.read(path, as_version=4))
    again = outputs(run_cells(path, tmp_path / "again.ipynb"))
    assert any(committed)
    for number, (old, new) in enumerate(zip(committed, again, strict=True)):
        assert [kind for kind, _ in old] == [kind for kind, _ in new], f"cell {number}"
        for (kind, before), (_, now) in zip(old, new):
            if kind == "image/png":
                one, two = pixels(before), pixels(now)
                same = one.shape == two.shape and abs(one - two).mean() < 2
                assert same, f"cell {number}: another picture"
            else:
                assert before == now, f"cell {number}"
