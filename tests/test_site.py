"The site in a browser: it opens from disk, fits a phone, searches, and asks nothing of another machine."

import shutil
from pathlib import Path

import pytest

from see_nb.errors import SeeError
from see_nb.experiments.reproduce import build_site, reproduce

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory, root) -> Path:
    "All notebooks as they are. A page in no part of the sidebar, or a dead link, is an error."
    folder = tmp_path_factory.mktemp("site")
    build_site(root / "nbs", folder)
    return folder


@pytest.fixture(scope="module")
def page():
    "A page of Chromium that keeps what went wrong and which addresses it asked for."
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"none of {', '.join(names)} is on PATH")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page()
        page.faults, page.asked = [], []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        yield page
        browser.close()


def opened(page, path: Path):
    "The page when its formulas are set."
    page.faults.clear()
    page.asked.clear()
    page.goto(path.as_uri())
    page.evaluate("window.MathJax?.startup?.promise?.then(() => 1) ?? 1")
    return page


SEEN = """() => ({
  overflow: Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth),
  unset: document.querySelectorAll('.math').length - document.querySelectorAll('mjx-container').length,
  faulty: document.querySelectorAll('mjx-merror, [data-mjx-error]').length,
  unnamed: [...document.images].filter(i => !i.alt || i.alt.includes('_images/')).length,
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth).length,
  directives: document.body.innerText.includes('#| ') ? 1 : 0,
})"""


def test_every_page_fits_a_phone_and_a_desk(site, page):
    pages = sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)
    assert len(pages) > 60
    assert [p.name for p in pages if p.stat().st_size > 1_000_000] == []
    formulas = 0
    for width, some in ((390, pages), (1280, pages[::8])):
        page.set_viewport_size({"width": width, "height": 844})
        for path in some:
            seen = opened(page, path).evaluate(SEEN)
            where = f"{path.relative_to(site).as_posix()} at {width}"
            assert set(seen.values()) == {0} and page.faults == [], (where, seen, page.faults)
            away = [a for a in page.asked if not a.startswith(("file:", "data:", "blob:"))]
            assert away == [], where
            formulas += page.locator("mjx-container").count()
    assert formulas > 100


FINDS = {  # what a stranger asks -> the page that comes first
    "SEELoss": "see_loss",
    "own photos": "own_photos",
    "train my photos": "own_photos",
    "search without training": "own_photos",
    "search page": "app",
    "my own loss": "05_adapters",
    "what is a proxy": "glossary",
    "does SEE help": "evidence_report",
    "lightning": "13_researchers",
}


@pytest.mark.parametrize("words, name", FINDS.items())
def test_search_finds_first(site, page, words, name):
    page.goto(f"{(site / 'search.html').as_uri()}?q={words.replace(' ', '+')}")
    found = page.locator("#search-results li a").first
    found.wait_for(timeout=60_000)
    assert name in found.get_attribute("href")


def test_the_path_comes_first_and_the_search_box_once(site, page):
    page.set_viewport_size({"width": 1280, "height": 844})
    opened(page, site / "index.html")
    captions = page.locator(".bd-sidebar-primary .caption-text").all_inner_texts()
    assert captions == ["Read", "Reference"]
    buttons = page.locator(".search-button, .search-button-field").all()
    assert sum(button.is_visible() for button in buttons) == 1
    assert "Author name not set" not in page.content()


def test_a_link_into_the_reference_unfolds_shapes_and_words_of_parameters(site, page):
    page.goto((site / "method" / "01_centers.html").as_uri() + "#see_nb.method.centers.mmd_centers")
    text = page.locator("#reference").inner_text()
    assert "mmd_centers" in text and "(L, L - 1)" in text and "n_centers" in text


def test_wrong_folders_are_told(tmp_path, root):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear ...")
    (tmp_path / "file").touch()
    for output, words in (
        (tmp_path / "mine", "has files that see-nb reproduce has not written"),
        (tmp_path / "file", "File exists"),
        (root / "nbs" / "site", "is inside the folder of the notebooks"),
    ):
        with pytest.raises(SeeError, match=words):
            reproduce(output=output, notebooks=root / "nbs")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "Dear ..."
