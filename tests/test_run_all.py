"Notebooks run as a reader runs them: on a machine without data sets, and to the words that are stored."

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import run_cells

NBS = Path(__file__).parents[1] / "nbs"
EVERY = sorted(NBS.rglob("*.ipynb"))
ALSO = ("09_training", "10_runs")  # long cells, and processes that a notebook starts
NEEDY = [p for p in EVERY if "at_hand(" in p.read_text("utf-8") or p.stem.endswith("_run")]
NEEDY += [p for p in EVERY if p.stem in ALSO and p not in NEEDY]
NEEDY = [p for p in NEEDY if p.stem != "quick_run"]  # a minute: `see-nb reproduce` runs it
LONGER = ("app", "see_in_half_an_hour", "index", "front_door")  # other tests look at these
ALL = os.environ.get("SEE_NB_RUN_ALL")  # all of them take many minutes
TEACHING = [p for p in EVERY if p.parent in (NBS, NBS / "method") and p.stem not in LONGER]


def name_of(path: Path) -> str:
    return path.relative_to(NBS).as_posix()


@pytest.fixture(scope="module")
def empty_root(tmp_path_factory) -> Path:
    "A data root in which only what is drawn appears."
    return tmp_path_factory.mktemp("empty")


@pytest.mark.parametrize("path", EVERY if ALL else NEEDY, ids=name_of)
def test_a_notebook_goes_through_without_what_is_missing(path, empty_root, tmp_path):
    places = {"SEE_NB_DATA": str(empty_root), "SEE_NB_OUTPUT": str(tmp_path / "output")}
    text = path.read_text("utf-8")
    if "On Colab" in text:  # it is opened alone
        path = Path(shutil.copy(path, tmp_path))
    done = run_cells(path, tmp_path / "run.ipynb", flagged=True, SEE_NB_PRESET="quick", **places)
    said = "".join(o.get("text", "") for c in done.cells for o in c.get("outputs", []))
    if 'at_hand("birds100' in text:
        assert "Left out here." in said


def words(cell) -> list[str]:
    "What a cell says, without its numbers and warnings, which differ from machine to machine."
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    lines = [x for x in "\n".join(texts).splitlines() if not re.search(r"warn|^<.*>$", x, re.I)]
    text = re.sub(r"\d[\d.,]*(e[-+]?\d+)?|nan|inf", " ", "\n".join(lines))
    return re.findall(r"[^\W\d_]+", text)


@pytest.mark.parametrize("path", TEACHING, ids=name_of)
def test_what_is_stored_is_what_a_notebook_says_today(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    fresh = run_cells(path, tmp_path / "run.ipynb")
    for before, now in zip(stored.cells, fresh.cells):
        if before.cell_type == "code":
            assert words(before) == words(now), before.source
