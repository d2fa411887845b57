"The site in a browser: it opens from disk and from a server, fits a phone, sorts, searches, and asks nothing of another machine."

import base64
import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from see_nb.errors import SeeError
from see_nb.experiments import site as site_module
from see_nb.experiments.site import build_site, read_notebooks, reproduce

new = nbformat.v4


def picture() -> str:
    "A small figure, as a notebook holds it."
    file = io.BytesIO()
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.plot([1, 3, 2])
    fig.savefig(file, dpi=90)
    plt.close(fig)
    return base64.b64encode(file.getvalue()).decode()


def shown(*data) -> nbformat.NotebookNode:
    "A code cell with outputs."
    outputs = [new.new_output("display_data", d) for d in data]
    return new.new_code_cell("x = " + "1 + " * 60 + "1", outputs=outputs)


def toy_notebooks() -> dict[str, nbformat.NotebookNode]:
    "Formulas, scripts in text, rows, a figure, tables with blanks, spans and two lines of headers, an empty notebook."
    plain = pd.DataFrame({
        "method": ["a", "b", "c", "d"],
        "recall": ["51.7% ± 1.5% (5)", "9.1% ± 0.2% (5)", "", "100.0% (1)"],
        "change": ["+0.3 ± 0.1", "-1.2 ± 0.3", "−0.5 ± 0.1", ""],
        "images": ["1,234", "987", "60,502", "5,924"],
    })  # fmt: skip
    long = pd.DataFrame(
        {"kind": list("xxyy"), "loss": list("pqpq"), "value": [3.0, 10.0, 2.0, 11.0]}
    )
    pivot = long.set_index(["kind", "loss"])
    rows = new.new_output("stream", text="one line\nRows: results/toy.jsonl (4)\nanother\n")
    wide = "$$" + " + ".join(rf"\frac{{x_{{{i}}}}}{{y_{{{i}}}}}" for i in range(40)) + "$$"
    evil = "<script>window.ran = 1</script><svg onload='window.ran = 1'></svg><b onclick='window.ran = 1'>bold</b>"
    cells = {
        "experiments/toy_run": [new.new_markdown_cell("# Toy run\n\n> It runs."), new.new_code_cell("#| slow\n1 + 1")],
        "experiments/toy_report": [
            new.new_markdown_cell(f"# Toy report {evil}\n\n> The *claim*. {evil}\n\n* **In**: [rows](toy_run.ipynb). **Out**: tables.\n\nNo caption."),
            new.new_code_cell("#| hide\nsecret = 1", outputs=[rows]),
            new.new_code_cell("1", outputs=[rows]),
            new.new_markdown_cell(f"## Part one {evil}\n\nThe caption with $z$.\n\n{wide}"),
            shown({"text/html": plain.to_html(index=False, na_rep="nan")}, {"image/png": picture()}),
            new.new_markdown_cell("After it.\n\n## Part two"),
            shown({"text/html": pivot.to_html()}),
        ],
        "experiments/zempty": [],
    }  # fmt: skip
    return {name: new.new_notebook(cells=of) for name, of in cells.items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory, root) -> Path:
    "The notebooks of the repository as they are, and some toys."
    folder = tmp_path_factory.mktemp("site")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a warning of Sphinx: a dead link, say
        build_site(read_notebooks(root / "nbs") | toy_notebooks(), folder)
    return folder


class Browser:
    "Headless Chromium, driven over its DevTools protocol."

    def __init__(self, executable: str, profile: Path):
        import websocket

        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        self.process = subprocess.Popen(
            [executable, *options, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port, deadline = profile / "DevToolsActivePort", time.time() + 60
        while not (port.exists() and port.read_text().count("\n")) and time.time() < deadline:
            time.sleep(0.05)
        number, path = port.read_text().split()
        address = f"ws://127.0.0.1:{number}{path}"
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.count, self.session, self.events = 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        self.count += 1
        request = {"id": self.count, "method": method, "params": parameters}
        session = {"sessionId": self.session} if self.session else {}
        self.socket.send(json.dumps(request | session))
        while (message := json.loads(self.socket.recv())).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def width(self, pixels: int) -> None:
        screen = {"width": pixels, "height": 844, "deviceScaleFactor": 1, "mobile": pixels < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)

    def open(self, address: str) -> None:
        "Load a page, and wait until its formulas are set."
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))
            assert self.events[-1]["method"] != "Page.javascriptDialogOpening", self.events[-1]
        self.ask("window.MathJax?.startup?.promise?.then(() => 1) ?? 1")

    def ask(self, code: str):
        "The value of a JavaScript expression, or of its promise."
        answer = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, code: str, seconds: float = 60) -> None:
        "Until a JavaScript expression is true."
        assert self.becomes(f"Boolean({code})", True, seconds), f"not within {seconds} s: {code}"

    def becomes(self, code: str, expected, seconds: float = 20):
        "The value of an expression, as soon as it is the expected one; what it is at last, if not."
        deadline = time.time() + seconds
        while (value := self.ask(code)) != expected and time.time() < deadline:
            time.sleep(0.05)
        return value

    def press(self, key: str, number: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if (key, kind) == ("Enter", "keyDown") else {}
            code = {"key": key, "code": key, "windowsVirtualKeyCode": number}
            self.call("Input.dispatchKeyEvent", type=kind, **code, **text)

    def errors(self) -> list:
        "Exceptions and console errors since the page was opened."
        return [
            event for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "assert")
            or event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"
        ]  # fmt: skip

    def requests(self) -> list[str]:
        "Addresses asked for since the page was opened."
        return [
            e["params"]["request"]["url"]
            for e in self.events
            if e["method"] == "Network.requestWillBeSent"
        ]

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

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
    pytest.importorskip("websocket", reason="websocket-client is not installed")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
UNSET = (
    "document.querySelectorAll('.math').length - document.querySelectorAll('mjx-container').length"
)
FAULTY = "document.querySelectorAll('mjx-merror, [data-mjx-error]').length"
BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
HIDDEN_NUMBERS = """[...document.querySelectorAll('.bd-article table')].filter(table => {
  const numbers = [...table.querySelectorAll('tbody td')].filter(cell => /^[-+−<]?\\d/.test(cell.textContent.trim()));
  return numbers.length && !numbers.some(cell => cell.getBoundingClientRect().left < innerWidth - 30);
}).map(table => table.textContent.trim().slice(0, 60))"""


def test_every_page_at_both_widths(site, browser):
    "All pages at 390 pixels; the landing page, the results and the first page of each wing at 1280."
    pages = sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)
    assert len(pages) > 30
    first = [next(p for p in pages if p.parent.name == wing) for wing in site_module.WINGS]
    wide = [site / "index.html", site / "results.html", *first]
    formulas = 0
    for width, some in ((390, pages), (1280, wide)):
        browser.width(width)
        for page in some:
            where = f"{page.relative_to(site).as_posix()} at {width}"
            browser.open(page.as_uri())
            assert browser.ask(OVERFLOW) <= 0, f"{where} overflows"
            assert browser.ask(HIDDEN_NUMBERS) == [], f"{where}: numbers off the screen"
            assert browser.errors() == [], where
            away = [a for a in browser.requests() if not a.startswith(("file:", "data:", "blob:"))]
            assert away == [], where
            assert browser.ask(UNSET) == 0, f"{where}: formulas that are not set"
            assert browser.ask(FAULTY) == 0, f"{where}: formulas with an error"
            assert browser.ask(BROKEN) == [], f"{where}: broken pictures"
            assert browser.ask("window.ran") is None, f"{where}: a script of the text ran"
            formulas += browser.ask("document.querySelectorAll('mjx-container').length")
    assert formulas > 100


def test_search_finds_the_loss_from_disk_and_from_a_server(site, browser):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    handler.log_message = lambda *arguments: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        served = f"http://127.0.0.1:{server.server_port}"
        for base in (site.as_uri(), served):
            browser.open(f"{base}/search.html?q=SEELoss")
            found = "[...document.querySelectorAll('#search-results li a')].map(a => a.textContent)"
            browser.wait(f"{found}.length")
            assert any("SEELoss" in text for text in browser.ask(found)), base
        browser.open(f"{served}/results.html")
        assert browser.errors() == []
        assert all(a.startswith((served, "data:", "blob:")) for a in browser.requests())
        server.shutdown()


COLUMN = "[...document.querySelectorAll('table.sortable')[{table}].tBodies[0].rows].map(row => row.cells[{column}].textContent.trim())"
SORTED = (
    "document.querySelectorAll('table.sortable')[{table}].querySelectorAll('thead th')[{column}]"
)


TABLES = "[...document.querySelectorAll('table.sortable')]"
ALL_READY = f"{TABLES}.length && {TABLES}.every(table => table.matches('.dataTable'))"


def test_tables_sort_by_the_first_number_of_a_cell(site, browser):
    browser.width(1280)
    browser.open((site / "experiments" / "toy_report.html").as_uri())
    browser.wait(ALL_READY)
    for column, ascending in {1: "cbad", 2: "dbca", 3: "badc", 0: "abcd"}.items():
        head = SORTED.format(table=0, column=column)
        for state, expected in (("ascending", ascending), ("descending", ascending[::-1])):
            browser.ask(f"{head}.click()")
            assert browser.becomes(f"{head}.ariaSort", state) == state
            names = COLUMN.format(table=0, column=0)
            assert browser.becomes(names, list(expected)) == list(expected), column
    assert browser.errors() == []


def test_tables_sort_by_keyboard_and_with_cells_over_several_rows(site, browser):
    browser.open((site / "experiments" / "toy_report.html").as_uri())
    browser.wait(ALL_READY)
    browser.ask(
        f"({SORTED.format(table=1, column=2)}.querySelector('[tabindex]') ?? {SORTED.format(table=1, column=2)}).focus()"
    )
    browser.press("Enter", 13)
    expected = ["y", "x", "x", "y"], ["p", "p", "q", "q"], ["2.0", "3.0", "10.0", "11.0"]
    for column, cells in enumerate(expected):
        assert browser.becomes(COLUMN.format(table=1, column=column), cells) == cells


def text_of(page: Path) -> str:
    return " ".join(
        BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").get_text(" ").split()
    )


def test_results_number_tables_and_figures_with_their_command_and_rows(site):
    text = text_of(site / "results.html")
    command = "Made by see-nb reproduce --preset full --only toy_run toy_report ; see the report ."
    last = text[
        text.index("Toy report window")
        if "Toy report window" in text
        else text.rindex("Toy report") :
    ]
    assert last.count(command) == 3
    assert last.count("Rows: results/toy.jsonl (4)") == 3
    page = BeautifulSoup((site / "results.html").read_text(), "html.parser")
    labels = [tag.get_text() for tag in page.find_all("strong")]
    tables = [label for label in labels if label.startswith("Table ")]
    figures = [label for label in labels if label.startswith("Figure ")]
    assert tables == [f"Table {i}." for i in range(1, len(tables) + 1)]
    article = page.find("article")
    assert len(article.select(".cell_output table")) == len(tables)
    assert len(article.select(".cell_output img")) == len(figures) > 0


def test_directives_and_hidden_cells_are_not_shown(site):
    for page in site.rglob("*.html"):
        text = re.sub("<[^>]*>", "", page.read_text(encoding="utf-8"))
        assert "#| " not in text or page.name in ("09_site.html", "CONTRIBUTING.html"), page
        assert "secret = 1" not in text, page


def test_the_reference_has_every_public_name_with_its_shapes_and_errors(site):
    text = text_of(site / "reference" / "method.html")
    assert "mmd_centers" in text and "(L, L-1)" in text or "(L, L - 1)" in text
    pages = {p.stem for p in (site / "reference").glob("*.html")}
    assert {"method", "data", "retrieval", "training", "experiments", "command_line"} <= pages
    help_page = text_of(site / "reference" / "command_line.html")
    assert "usage: see-nb train" in help_page and "usage: see-nb reproduce" in help_page


@pytest.fixture
def toy_folder(tmp_path) -> Path:
    "Two runs, a report of rows of a run and of rows that come with it, a report made before, an empty notebook."
    folder = tmp_path / "nbs" / "experiments"
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "old.jsonl").write_text('{"recall": 0.5}\n')
    run = "import os; from see_nb.training.results import append_row; append_row({{'recall': 0.1}}, os.environ['SEE_NB_OUTPUT'] + '/{0}.jsonl')"
    report = "from see_nb.training.results import report_rows\nreport_rows('{0}.jsonl')"
    table = {"text/html": "<table><tr><td>as committed</td></tr></table>"}
    codes = {
        "quick_run": [run.format("ten")],
        "other_run": [run.format("other")],
        "table_report": [report.format("other"), report.format("old")],
        "broken_report": ["1 / 0"],
    }
    for name, cells in codes.items():
        text = f"# {name}\n\n> Claim.\n\n* **In**: [runs](other_run.ipynb).\n\n## Part\n\nText."
        outputs = [new.new_output("execute_result", table)] if name == "broken_report" else []
        code = [new.new_code_cell(cell, outputs=outputs) for cell in cells]
        notebook = new.new_notebook(cells=[new.new_markdown_cell(text), *code])
        nbformat.write(notebook, folder / f"{name}.ipynb")
    nbformat.write(new.new_notebook(), folder / "empty_report.ipynb")
    return folder.parent


def test_only_some_notebooks_run_and_the_others_stand_as_they_are(
    toy_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(site_module, "reference_pages", lambda: {})
    monkeypatch.setenv("SEE_NB_PRESET", "")
    monkeypatch.setenv("SEE_NB_OUTPUT", "")
    output = tmp_path / "site"
    index = reproduce("quick", output, toy_folder, ("other_run", "table_report", "empty_report"))
    assert index == output / "index.html" and index.is_file()
    assert (output / "other.jsonl").exists() and not (output / "ten.jsonl").exists()
    shown = text_of(output / "results.html")
    assert "as committed" in shown
    assert "see-nb reproduce --preset quick --only other_run table_report" in shown
    assert "see-nb reproduce --preset full --only other_run broken_report" in shown
    assert "100% |" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["file", "inside", "index", "readonly", "none", "unknown"])
def test_what_cannot_work_is_said_before_anything_runs(toy_folder, tmp_path, case):
    output, only = tmp_path / "site", None
    if case == "file":
        output.write_text("")
    elif case == "inside":
        output = toy_folder / "site"
    elif case == "index":
        (output / "index.html").mkdir(parents=True)
    elif case == "readonly":
        output = Path("/proc/site")
    else:
        only = {"none": (), "unknown": ("quick_rum",)}[case]
    expected = {
        "file": "is a file", "inside": "inside the folder", "index": "index.html is a folder",
        "readonly": "cannot write", "none": "expected names", "unknown": "Did you mean 'quick_run'",
    }[case]  # fmt: skip
    with pytest.raises(SeeError, match=expected):
        reproduce("quick", output, toy_folder, only)
    assert not list(tmp_path.rglob("*.jsonl")) or [p.name for p in tmp_path.rglob("*.jsonl")] == [
        "old.jsonl"
    ]
