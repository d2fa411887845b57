"The search page in a browser, with real photos."

import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from see_nb.data.datasets import data_root
from see_nb.retrieval.index import Index
from see_nb.training.recipes import Recipe
from see_nb.training.run import Run, empty_model, make_objective

pytest.importorskip("gradio", reason="the extra [app] is not installed")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

KINDS = ("001.Black_footed_Albatross", "010.Red_winged_Blackbird", "016.Painted_Bunting")
WEIGHTS = "tf_efficientnet_lite0.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "Thirty photos of three birds, and two models with an index each."
    birds = data_root() / "birds100"
    for place in (birds, data_root() / WEIGHTS):
        if not place.exists():
            pytest.skip(f"{place} is not there")
    top = tmp_path_factory.mktemp("app")
    for kind in KINDS:
        (top / "photos" / kind).mkdir(parents=True)
        for file in sorted((birds / kind).iterdir())[:10]:
            shutil.copy(file, top / "photos" / kind / file.name)
    for name, options in {
        "good": {"backbone": "tf_efficientnet_lite0", "weights": str(data_root() / WEIGHTS)},
        "random": {"backbone": "conv4", "width": 4},
    }.items():
        recipe = Recipe(dataset="folder", embedding_size=64, image_size=128, **options)
        torch.manual_seed(0)
        weights = {"weights": recipe.weights} if recipe.weights else {}
        model = empty_model(recipe, 3, pretrained=False, **weights).eval()
        source = str(top / f"{name}.pt")
        known = {"name": "folder", "version": "", "image_hash": ""}
        data = {"train": known | {"classes": ["a", "b"]}, "test": known | {"classes": ["c"]}}
        Run(recipe, model, make_objective(recipe, 2), ["a", "b"], {"run": "small"}, data).save(
            source
        )
        Index.build(model, top / "photos", source=source, path=top / f"{name}.index")
    return top


@pytest.fixture(scope="module")
def address(folder) -> str:
    "The page, served."
    from see_nb.app import launch

    page = launch([folder], wait=False)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def browser():
    "Chromium without a window."
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    with api.sync_playwright() as play:
        try:
            made = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield made
        made.close()


@pytest.fixture
def page(browser, address):
    "The page in a window of a computer, with a list of what it asked for."
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(30_000)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.get_by_role("heading", name="Nearest photos").wait_for()
    yield page
    page.close()


def captions(page, index: str) -> list[str]:
    "What stands below the neighbours that an index found."
    heading = page.get_by_role("heading", name=index)
    heading.wait_for()
    return heading.locator("xpath=..").locator("figcaption").all_inner_texts()


def keep(page, name: str) -> None:
    "A picture of the page, where a folder for them is named."
    if os.environ.get("SEE_NB_SCREENSHOTS"):
        page.screenshot(path=f"{os.environ['SEE_NB_SCREENSHOTS']}/{name}.png", full_page=True)


def test_a_dropped_photo_finds_its_kind_and_two_models_stand_side_by_side(page, folder):
    photo = next((folder / "photos" / KINDS[2]).iterdir())
    page.locator("input[type=file]").first.set_input_files(photo)
    found = captions(page, "good.index")
    assert len(found) == 12 and re.match(rf"1\. {KINDS[2]} (1\.000|0\.99\d)", found[0])
    assert sum(KINDS[2] in caption for caption in found[:5]) >= 4
    assert page.locator(".strip img[alt]").count() == 12
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="random.index").click()
    other = captions(page, "random.index")
    assert len(other) == 12 and other != found
    keep(page, "compare")
    outside = [url for url in page.asked if not re.match(r"http://127\.0\.0\.1|data:|blob:", url)]
    assert not outside


def test_the_last_photo_that_was_dropped_or_chosen_is_the_one_searched_for(page, folder):
    drop, first = page.locator("input[type=file]").first, page.locator("figcaption").first
    stored = page.get_by_label("or choose one of the index")
    drop.set_input_files(next((folder / "photos" / KINDS[2]).iterdir()))
    api.expect(first).to_contain_text(f"1. {KINDS[2]}")
    stored.fill(KINDS[1])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    api.expect(first).to_contain_text(f"1. {KINDS[1]} 1.000")
    drop.set_input_files(next((folder / "photos" / KINDS[0]).iterdir()))
    api.expect(first).to_contain_text(f"1. {KINDS[0]}")
    assert stored.input_value() == ""
    page.get_by_role("button", name="Search").click()
    page.wait_for_load_state("networkidle")
    api.expect(first).to_contain_text(f"1. {KINDS[0]}")


def test_by_keyboard_alone_a_stored_photo_is_searched_among_one_class(page):
    stored = page.get_by_label("or choose one of the index")
    stored.focus()
    page.keyboard.type(KINDS[1])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    found = captions(page, "good.index")
    assert found[0].startswith(f"1. {KINDS[1]} 1.000")
    assert page.locator("figure.hit").count() == sum(KINDS[1] in caption for caption in found)
    page.get_by_label("Only these classes").focus()
    page.keyboard.type(KINDS[0])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.strip figure').length == 10")
    assert all(KINDS[0] in caption for caption in captions(page, "good.index"))
    keep(page, "keyboard")


def test_on_a_phone_nothing_is_wider_than_the_screen(page, folder):
    page.set_viewport_size({"width": 390, "height": 844})
    photo = next((folder / "photos" / KINDS[0]).iterdir())
    page.locator("input[type=file]").first.set_input_files(photo)
    assert len(captions(page, "good.index")) == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keep(page, "phone")


def test_what_is_wrong_is_said_on_the_page(page):
    page.get_by_role("button", name="Search").click()
    alert = page.locator("p[role=alert]")
    alert.wait_for()
    assert "photo: drop one, or choose one of the index" in alert.inner_text()


def test_no_file_of_this_computer_is_served(address, folder):
    for path in ("/etc/hostname", folder / "good.pt", folder / "photos"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}gradio_api/file={path}", timeout=20)
        assert error.value.code in (403, 404)
