"The book in a browser: it sorts, enlarges, fits a phone, and every link of it leads somewhere."

import base64
import io
import json
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import unquote

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from see_nb.experiments.book import write_book

new = nbformat.v4


def parsed(book: Path) -> dict[str, BeautifulSoup]:
    "Every page."
    return {
        path.name: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in book.glob("*.html")
    }


def dead_links(book: Path, pages: dict[str, BeautifulSoup]) -> list[str]:
    "Links, pictures and anchors that are not there."
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    dead = []
    for name, page in pages.items():
        for tag in page.find_all(["a", "img", "script", "link", "iframe"]):
            target = tag.get("href") or tag.get("src")
            if (
                target is None
                or target.startswith(("data:", "https://"))
                and tag.name in ("a", "img", "link")
            ):
                continue
            path, _, anchor = unquote(target).partition("#")
            if (
                path
                and not (book / path).is_file()
                or anchor
                and anchor not in anchors[path or name]
            ):
                dead.append(f"{name}: {tag.name} {target}")
    return dead


@pytest.fixture(scope="module")
def picture() -> str:
    "A small figure, as a notebook holds it."
    file = io.BytesIO()
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.plot([1, 3, 2])
    fig.savefig(file, dpi=90)
    plt.close(fig)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def toy_book(tmp_path_factory, picture) -> Path:
    "Formulas, links, rows, figures, and tables with blanks, cells over several rows and two lines of headers."
    plain = pd.DataFrame({
        "method": ["a", "b", "c", "d"],
        "recall": ["51.7% ± 1.5% (5)", "9.1% ± 0.2% (5)", "", "100.0% (1)"],
        "p": ["p 0.5", "p 1e-05", "nan", "p 0.03"],
        "change": ["+0.3 ± 0.1", "-1.2 ± 0.3", "−0.5 ± 0.1", ""],
        "images": ["1,234", "987", "60,502", "5,924"],
    })  # fmt: skip
    long = pd.DataFrame(
        {"kind": list("xxyy"), "loss": list("pqpq"), "D": [16] * 4, "value": [3.0, 10.0, 2.0, 11.0]}
    )
    pivot = pd.concat([long, long.assign(D=64)]).pivot(
        index=["kind", "loss"], columns="D", values="value"
    )

    def shown(*data):
        return new.new_code_cell(
            "x = " + "1 + " * 60 + "1", outputs=[new.new_output("display_data", d) for d in data]
        )

    rows = new.new_output("stream", text="one line\nRows: results/toy.jsonl (4)\nanother\n")
    first = "# Report of $y$\n\n> The *claim*.\n\n* **In**: rows of [notebook 12](12_toy_run.ipynb). **Out**: tables.\n\nNo caption."
    wide = r"$$" + " + ".join(rf"\frac{{x_{{{i}}}}}{{y_{{{i}}}}}" for i in range(40)) + "$$"
    notebooks = {
        "00_toy": [new.new_markdown_cell(f"# Toy\n\n> About $x^2$.\n\nSee [the report](20_toy.ipynb).\n\n{wide}\n\n| a | b |\n| --- | --- |\n| 2 | x |\n| 1 | y |")],
        "12_toy_run": [new.new_markdown_cell("# Run\n\n> It runs."), new.new_code_cell("1")],
        "20_toy": [
            new.new_markdown_cell(first),
            new.new_code_cell("1", outputs=[rows]),
            new.new_markdown_cell("## Part one\n\nThe caption with $z$."),
            shown({"text/html": plain.to_html(index=False, na_rep="nan")}, {"image/png": picture}),
            new.new_markdown_cell("After it.\n\n## Part two"),
            shown({"text/html": pivot.to_html()}),
        ],
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.jsonl").write_text("{}\n" * 4)
    write_book(
        {stem: new.new_notebook(cells=cells) for stem, cells in notebooks.items()},
        folder / "book",
        results=folder,
    )
    return folder / "book"


@pytest.fixture(scope="module")
def committed_book(tmp_path_factory, root) -> Path:
    "The notebooks of the repository as they are."
    paths = sorted((root / "nbs").glob("[0-9]*.ipynb"))
    index = write_book(
        {path.stem: nbformat.read(path, as_version=4) for path in paths},
        tmp_path_factory.mktemp("book"),
        results=root / "nbs" / "experiments" / "results",
    )
    return index.parent


class Browser:
    "Headless Chromium, driven over its DevTools protocol."

    def __init__(self, executable: str, profile: Path):
        import websocket

        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            [executable, *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port, deadline = profile / "DevToolsActivePort", time.time() + 60
        while not (port.exists() and port.read_text().count("\n")) and time.time() < deadline:
            time.sleep(0.05)
        number, path = port.read_text().split()
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{number}{path}", timeout=60, suppress_origin=True
        )
        self.count, self.session, self.events = 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        self.count += 1
        request = {"id": self.count, "method": method, "params": parameters}
        self.socket.send(
            json.dumps(request | ({"sessionId": self.session} if self.session else {}))
        )
        while (message := json.loads(self.socket.recv())).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, path: Path, width: int = 1200) -> None:
        "Load a page on a screen of this width, and wait for it."
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def ask(self, code: str):
        "The value of a JavaScript expression."
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, number: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if (key, kind) == ("Enter", "keyDown") else {}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=number,
                **text,
            )

    def errors(self) -> list:
        "Exceptions and console errors since the page was opened."
        return [
            event for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "assert")
            or event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"
        ]  # fmt: skip

    def close(self) -> None:
        self.session = None
        self.call("Browser.close")
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"none of {', '.join(names)} is on PATH")
    pytest.importorskip(
        "websocket", reason="websocket-client, which jupyterlab brings, is not installed"
    )
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_index_numbers_links_and_explains_tables_and_figures(toy_book):
    page = BeautifulSoup((toy_book / "index.html").read_text(), "html.parser")
    assert [h.text for h in page.find_all("h3")] == [
        "Explain",
        "Run",
        "Report",
        "Part one",
        "Part two",
    ]
    assert [figure["id"] for figure in page.find_all("figure")] == [
        "table-1",
        "figure-1",
        "table-2",
    ]
    assert all(page.find("a", href=f"#{anchor}") for anchor in ("table-1", "figure-1", "table-2"))
    table, figure, pivot = [
        " ".join(caption.text.split()) for caption in page.find_all("figcaption")
    ]
    command = "Made by see-nb reproduce --preset full --only 12 20 in this cell. Rows: results/toy.jsonl (4)."
    assert table == f"Table 1. Part one The caption with z. {command}"
    assert figure == f"Figure 1. Part one After it. {command}"
    assert pivot == f"Table 2. Part two {command}"
    assert (toy_book / "results" / "toy.jsonl").read_text() == "{}\n" * 4
    assert (
        page.find("meta", {"name": "viewport"})["content"] == "width=device-width, initial-scale=1"
    )


@pytest.mark.parametrize("book", ["toy_book", "committed_book"])
def test_every_link_and_picture_resolves(book, request):
    book = request.getfixturevalue(book)
    pages = parsed(book)
    assert len(pages) > 3
    assert dead_links(book, pages) == []
    for name, page in pages.items():
        assert not page.select("script[src], link[rel=stylesheet]") and page.html["lang"] == "en", (
            name
        )
        for block in page.select("pre, code, script, style"):
            block.extract()
        assert "$" not in page.select_one("main").text, name  # all formulas are drawn


@pytest.mark.parametrize("book", ["toy_book", "committed_book"])
def test_pages_fit_a_phone_and_have_no_errors(book, browser, request):
    for page in sorted(request.getfixturevalue(book).glob("*.html")):
        browser.open(page, width=390)
        assert browser.errors() == [], page.name
        assert browser.ask("document.documentElement.scrollWidth") <= 390, page.name
        assert browser.ask(
            "[...document.images].every(image => image.complete && image.naturalWidth > 0 && image.alt)"
        ), page.name
        assert (
            browser.ask("parseFloat(getComputedStyle(document.querySelector('main p')).fontSize)")
            >= 16
        ), page.name


COLUMN = "[...document.querySelectorAll('table')[{table}].tBodies[0].rows].map(row => row.cells[{column}].textContent.trim())"
HEADS = "[...document.querySelectorAll('table')[{table}].querySelectorAll('th[aria-sort] button')]"


@pytest.mark.parametrize("page", ["index.html", "20_toy.html"])
def test_tables_sort_by_the_first_number_of_a_cell(browser, toy_book, page):
    browser.open(toy_book / page)
    orders = {1: "badc", 2: "bdac", 3: "bcad", 4: "badc", 0: "abcd"}  # ascending, blanks last
    for column, order in orders.items():
        head = f"{HEADS.format(table=0)}[{column}]"
        for state, expected in (("ascending", order), ("descending", None), ("none", "abcd")):
            browser.ask(f"{head}.click()")
            assert browser.ask(f"{head}.parentElement.ariaSort") == state
            shown = "".join(browser.ask(COLUMN.format(table=0, column=0)))
            blanks = {1: "c", 2: "c", 3: "d"}.get(column, "")
            assert shown == (expected or order.removesuffix(blanks)[::-1] + blanks), (column, state)
    assert browser.errors() == []


def test_tables_sort_by_keyboard_and_with_cells_over_several_rows(browser, toy_book):
    browser.open(toy_book / "index.html")
    assert sorted(browser.ask(f"{HEADS.format(table=1)}.map(head => head.textContent)")) == [
        "16",
        "64",
        "kind",
        "loss",
    ]
    browser.ask(f"{HEADS.format(table=1)}[0].focus()")
    browser.press("Enter", 13)
    assert [browser.ask(COLUMN.format(table=1, column=column)) for column in range(3)] == [
        ["y", "x", "x", "y"], ["p", "p", "q", "q"], ["2.0", "3.0", "10.0", "11.0"],
    ]  # fmt: skip
    assert (
        browser.ask(
            "document.querySelectorAll('table')[1].querySelector('th[aria-sort=ascending]').textContent"
        )
        == "16"
    )
    browser.open(toy_book / "00_toy.html")  # a table of a markdown cell
    browser.ask(f"{HEADS.format(table=0)}[0].click()")
    assert browser.ask(COLUMN.format(table=0, column=1)) == ["y", "x"]


@pytest.mark.parametrize("width", [390, 1200])
def test_a_figure_enlarges_by_a_click_and_escape_closes_it(browser, toy_book, width):
    browser.open(toy_book / "index.html", width)
    size = "document.querySelector('{0} img').getBoundingClientRect().width"
    before = browser.ask(size.format("main"))
    browser.ask("document.querySelector('main img').scrollIntoView()")
    x, y = browser.ask(
        "(box => [box.x + 20, box.y + 20])(document.querySelector('main img').getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert browser.ask("document.querySelector('dialog').open")
    assert browser.ask(size.format("dialog")) > 1.5 * before
    browser.press("Escape", 27)
    assert not browser.ask("document.querySelector('dialog').open")
    assert browser.ask("document.activeElement.ariaLabel").startswith("Enlarge: ")
    browser.press("Enter", 13)
    assert browser.ask("document.querySelector('dialog').open")


@pytest.fixture
def toy_notebooks(tmp_path) -> Path:
    "Two runs, a report of rows of a run and of rows that come with it, and a report that was made before."
    folder = tmp_path / "nbs"
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "old.jsonl").write_text('{"recall": 0.5}\n')
    run = "import os; from see_nb.training.results import append_row; append_row({{'recall': 0.1}}, os.environ['SEE_NB_OUTPUT'] + '/{0}.jsonl')"
    report = "from see_nb.training.results import report_rows\nreport_rows('{0}.jsonl')"
    before = [
        new.new_output(
            "execute_result", {"text/html": "<table><tr><td>as committed</td></tr></table>"}
        )
    ]
    codes = {
        "10_quick_run": [run.format("ten")],
        "10a_other_run": [run.format("ten-a")],
        "20_table": [report.format("ten-a"), report.format("old")],
        "21_table": ["1 / 0"],
    }  # fmt: skip
    for name, cells in codes.items():
        text = new.new_markdown_cell(
            f"# {name}\n\n> Claim.\n\n* **In**: [runs](10a_other_run.ipynb).\n\n## Part\n\nText."
        )
        outputs = before if name == "21_table" else []
        nbformat.write(
            new.new_notebook(
                cells=[text, *(new.new_code_cell(code, outputs=outputs) for code in cells)]
            ),
            folder / f"{name}.ipynb",
        )
    return folder


def test_only_some_notebooks_run_and_the_others_stand_as_they_are(
    see_nb_command, toy_notebooks, tmp_path
):
    book = tmp_path / "book"
    done = see_nb_command(
        "reproduce", "--notebooks", toy_notebooks, "--output", book, "--only", "10a", "20"
    )
    assert done.returncode == 0, done.stderr
    assert (
        "[2/2] 20_table" in done.stderr
        and (book / "ten-a.jsonl").exists()
        and not (book / "ten.jsonl").exists()
    )
    pages = parsed(book)
    captions = [
        " ".join(caption.text.split()) for caption in pages["index.html"].find_all("figcaption")
    ]
    assert [caption.split("Made by ")[1] for caption in captions] == [
        "see-nb reproduce --preset quick --only 10a 20 in this cell. Rows: ten-a.jsonl (1).",
        "see-nb reproduce --preset quick --only 10a 20 in this cell. Rows: ten-a.jsonl (1); results/old.jsonl (1).",
        "see-nb reproduce --preset full --only 10a 21 in this cell.",
    ]  # fmt: skip
    assert (
        "as committed" in pages["index.html"].text
        and len(pages) == 5
        and dead_links(book, pages) == []
    )
