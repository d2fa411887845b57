"The tutorial keeps what it promises: short, small cells, hardly a silent one, pictures that are small and need no network."

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


def prose(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_it_is_read_in_half_an_hour_and_its_cells_are_short(tutorial):
    assert len(prose(tutorial).split()) <= MOST_WORDS
    for cell in code_cells(tutorial):
        lines = [x for x in cell.source.splitlines() if x.strip() and not x.startswith("#")]
        lines = [x for x in lines if not re.match(r"from|import| {4}\w+,$|\)$", x)]
        assert len(lines) <= MOST_LINES, cell.source
        assert max(map(len, cell.source.splitlines())) <= MOST_WIDTH, cell.source
    silent = [cell.source.splitlines()[0] for cell in code_cells(tutorial) if not cell.outputs]
    assert len(silent) <= MOST_SILENT, silent


def test_pictures_are_small_and_the_sliders_need_no_network(tutorial):
    outputs = [o.data for c in code_cells(tutorial) for o in c.outputs if "data" in o]
    sizes = [len(data["image/png"]) * 3 / 4 for data in outputs if "image/png" in data]
    assert len(sizes) >= 4 and max(sizes) < 100_000
    pages = [data.get("text/html", "") for data in outputs]
    assert sum(map(len, pages)) < 200_000
    (page,) = [page for page in pages if "<script>" in page]
    assert page.count('type="range"') == 2
    assert not re.search(r"https?:|src=|import\b|fetch", page)


def test_exercises_are_folded_and_terms_in_bold_are_in_the_glossary(tutorial, root):
    text = prose(tutorial)
    exercises = re.findall(r"^\*\*\d\.\*\*", text, flags=re.MULTILINE)
    assert len(exercises) == text.count("<details>") == text.count("</details>") == 5
    glossary = (root / "nbs" / "glossary.md").read_text().lower()
    story = text[text.index("## 1.") : text.index("## 7.")]
    terms = re.findall(r"(?<!\* )\*\*([a-z@0-9 ]+)\*\*", story, flags=re.IGNORECASE)
    explained = " | ".join(re.findall(r"^(.+)\n: ", glossary, flags=re.MULTILINE))
    assert len(terms) >= 10
    assert [t for t in terms if t.lower() not in explained] == []


def test_the_tutorial_runs_through_and_shows_what_it_says(root, tmp_path):
    notebook = run_cells(root / "nbs" / "see_in_half_an_hour.ipynb", tmp_path / "run.ipynb")
    printed = "".join(o.get("text", "") for c in code_cells(notebook) for o in c.outputs)
    middle = {
        line[:22].strip(): sorted(int(x) for x in line[22:].split()[:3])[1]
        for line in printed.splitlines()
        if line.endswith(" degrees") and len(line) > 30
    }
    assert len(middle) == 4
    assert middle["SEE, with the encoder"] < 0.5 * middle["alone"]
    assert middle["repeated sources"] > 0.8 * middle["alone"]
