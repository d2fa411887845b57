"Run All goes through, with every flagged cell, on a machine without data sets and optional packages."

import os
from pathlib import Path

import pytest
from conftest import run_cells

NBS = Path(__file__).parents[1] / "nbs"
EVERY = sorted(NBS.rglob("*.ipynb"))
ALSO = ("09_training", "10_runs")  # long cells, and processes that a notebook starts
NEEDY = [p for p in EVERY if "at_hand(" in p.read_text("utf-8") or p.stem.endswith("_run")]
NEEDY += [p for p in EVERY if p.stem in ALSO and p not in NEEDY]
NEEDY = [p for p in NEEDY if p.stem != "quick_run"]  # a minute: `see-nb reproduce` runs it
CHOSEN = EVERY if os.environ.get("SEE_NB_RUN_ALL") else NEEDY  # all of them take many minutes


@pytest.fixture(scope="module")
def empty_root(tmp_path_factory) -> Path:
    "A data root in which only what is drawn appears."
    return tmp_path_factory.mktemp("empty")


@pytest.mark.parametrize("path", CHOSEN, ids=lambda p: p.relative_to(NBS).as_posix())
def test_a_notebook_goes_through_without_what_is_missing(path, empty_root, tmp_path):
    places = {"SEE_NB_DATA": str(empty_root), "SEE_NB_OUTPUT": str(tmp_path / "output")}
    done = run_cells(path, tmp_path / "run.ipynb", flagged=True, SEE_NB_PRESET="quick", **places)
    said = "".join(o.get("text", "") for c in done.cells for o in c.get("outputs", []))
    if 'at_hand("birds100' in path.read_text("utf-8"):
        assert "Left out here." in said
