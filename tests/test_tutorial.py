"The tutorial keeps what it promises: short, small cells, hardly a silent one, pictures that are light and need no network."

import re

import nbformat
import pytest
from conftest import run_cells

MOST_WORDS, MOST_LINES, MOST_WIDTH, MOST_SILENT = 1650, 8, 70, 5


@pytest.fixture(scope="module")
def tutorial(root):
    return nbformat.read(root / "nbs" / "see_in_half_an_hour.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_tutorial_is_read_in_half_an_hour(tutorial):
    words = sum(len(c.source.split()) for c in tutorial.cells if c.cell_type == "markdown")
    assert words <= MOST_WORDS


def test_cells_are_short(tutorial):
    for cell in code_cells(tutorial):
        lines = [x for x in cell.source.splitlines() if x.strip() and not x.startswith("#")]
        lines = [x for x in lines if not re.match(r"from|import| {4}\w+,$|\)$", x)]
        assert len(lines) <= MOST_LINES, cell.source
        assert max(map(len, cell.source.splitlines())) <= MOST_WIDTH, cell.source


def test_hardly_a_cell_is_silent(tutorial):
    silent = [cell.source.splitlines()[0] for cell in code_cells(tutorial) if not cell.outputs]
    assert len(silent) <= MOST_SILENT, silent


def test_pictures_are_light(tutorial):
    outputs = [o.data for c in code_cells(tutorial) for o in c.outputs if "data" in o]
    sizes = [len(data["image/png"]) * 3 / 4 for data in outputs if "image/png" in data]
    assert len(sizes) >= 4 and max(sizes) < 100_000
    assert sum(len(data.get("text/html", "")) for data in outputs) < 200_000


def test_the_sliders_work_in_a_saved_page_without_a_network(tutorial):
    pages = [
        o.data.get("text/html", "") for c in code_cells(tutorial) for o in c.outputs if "data" in o
    ]
    (page,) = [page for page in pages if "<script>" in page]
    assert page.count('type="range"') == 2
    assert not re.search(r"https?:|src=|import\b|fetch", page)


def test_exercises_have_folded_solutions(tutorial):
    text = "\n".join(c.source for c in tutorial.cells if c.cell_type == "markdown")
    assert (
        len(re.findall(r"^\*\*\d\.\*\*", text, flags=re.MULTILINE)) == text.count("<details>") == 5
    )
    assert text.count("<details>") == text.count("</details>")


def test_terms_in_bold_are_in_the_glossary(tutorial, root):
    glossary = (root / "nbs" / "glossary.md").read_text().lower()
    text = "\n".join(c.source for c in tutorial.cells if c.cell_type == "markdown")
    story = text[text.index("## 1.") : text.index("## 7.")]
    terms = re.findall(r"(?<!\* )\*\*([a-z@0-9 ]+)\*\*", story, flags=re.IGNORECASE)
    explained = " | ".join(re.findall(r"^(.+)\n: ", glossary, flags=re.MULTILINE))
    assert len(terms) >= 10
    assert [t for t in terms if t.lower() not in explained] == []


def test_the_tutorial_runs_through_and_shows_what_it_says(root, tmp_path):
    notebook = run_cells(root / "nbs" / "see_in_half_an_hour.ipynb", tmp_path / "run.ipynb")
    printed = "".join(o.get("text", "") for c in code_cells(notebook) for o in c.outputs)
    off = {
        line.rsplit(" degrees")[0][:22].strip(): [int(x) for x in line[22:].split()[:3]]
        for line in printed.splitlines()
        if line.endswith(" degrees") and len(line) > 30
    }
    assert len(off) == 4
    middle = {name: sorted(degrees)[1] for name, degrees in off.items()}
    assert middle["SEE, with the encoder"] < 0.5 * middle["alone"]
    assert middle["repeated sources"] > 0.8 * middle["alone"]
