"The search page in a browser, with real photos."

import json
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import save_model
from PIL import Image

from see_nb.data.datasets import data_root
from see_nb.errors import SeeError
from see_nb.retrieval.database import Rows
from see_nb.retrieval.index import Index
from see_nb.training.export import index_with_model, open_model

pytest.importorskip("gradio", reason="the extra [app] is not installed")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

api.expect.set_options(timeout=30_000)

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
    large = {"embedding_size": 64, "image_size": 128}
    backbone = {"backbone": "tf_efficientnet_lite0", "weights": str(data_root() / WEIGHTS)}
    for name, fields in {"good": backbone, "random": {}}.items():
        model, source = open_model(save_model(top / f"{name}.pt", **large | fields))
        Index.build(model, top / "photos", source=source, path=top / f"{name}.index")
    return top


@pytest.fixture(scope="module")
def address(folder) -> str:
    "The page, served."
    from see_nb.app import served

    with served([folder]) as place:
        yield place


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
    assert len(found) == 12 and re.match(
        rf"1\. {KINDS[2]} 1\.000", found[0]
    )  # as `search` reads it
    assert sum(KINDS[2] in caption for caption in found[:5]) >= 4
    assert page.locator(".strip img[alt]").count() == 12
    assert page.locator("img.query").count() == 1
    page.locator(".strip summary").first.click()
    api.expect(page.locator(".strip details[open] p")).to_contain_text(f"photos/{KINDS[2]}")
    assert page.locator(".strip details[open] img").bounding_box()["width"] > 300
    keep(page, "large")
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="random.index").click()
    other = captions(page, "random.index")
    assert len(other) == 12 and other != found
    keep(page, "compare")
    outside = [url for url in page.asked if not re.match(r"http://127\.0\.0\.1|data:|blob:", url)]
    assert not outside


def test_the_last_photo_that_was_dropped_or_named_is_the_one_searched_for(page, folder, tmp_path):
    drop, first = page.locator("input[type=file]").first, page.locator("figcaption").first
    stored = page.get_by_label("or type the name of one of the index")
    drop.set_input_files(next((folder / "photos" / KINDS[2]).iterdir()))
    api.expect(first).to_contain_text(f"1. {KINDS[2]}")
    stored.fill(f"{KINDS[1]}/{min((folder / 'photos' / KINDS[1]).iterdir()).name}")
    page.keyboard.press("Enter")
    api.expect(first).to_contain_text(f"1. {KINDS[1]} 1.000")
    assert page.locator("figure.hit").count() >= 4  # the class of a stored photo is known
    keep(page, "keyboard")
    stored.fill("Albatross")
    page.keyboard.press("Enter")
    alert = page.locator("p[role=alert]")
    api.expect(alert).to_contain_text("which is in the names of 10")
    assert page.locator(".strip").count() == 0  # the answer to another question is gone
    Path(tmp_path / "letter.jpg").write_text("no photo")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "letter.jpg")
    api.expect(alert).to_contain_text("photo: letter.jpg cannot be read")
    assert stored.input_value() == ""


def test_a_photo_as_telephones_take_it_is_read(page, folder, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    with Image.open(min((folder / "photos" / KINDS[0]).iterdir())) as photo:
        heif.from_pillow(photo.convert("RGB")).save(tmp_path / "photo.heic", quality=95)
    page.locator("input[type=file]").first.set_input_files(tmp_path / "photo.heic")
    assert KINDS[0] in captions(page, "good.index")[0]


def test_on_a_phone_nothing_is_wider_than_the_screen(page, folder):
    page.set_viewport_size({"width": 390, "height": 844})
    photo = next((folder / "photos" / KINDS[0]).iterdir())
    page.locator("input[type=file]").first.set_input_files(photo)
    assert len(captions(page, "good.index")) == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keep(page, "phone")


def answer_to(address: str, path: str, **headers) -> int:
    "The code of an answer."
    request = urllib.request.Request(f"{address}{path}", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_this_computer_is_answered_and_no_file_is_served(address, folder):
    for path in ("/etc/hostname", folder / "good.pt", folder / "photos"):
        assert answer_to(address, f"gradio_api/file={path}") in (403, 404)
    assert answer_to(address, "") == 200
    assert answer_to(address, "", Host="photos.example.org") == 400
    assert answer_to(address, "", Origin="http://photos.example.org") == 403
    assert answer_to(address, "", Origin=address.rstrip("/")) == 200


def test_programs_ask_by_http(address, folder):
    from gradio_client import Client, handle_file

    client, photo = Client(address, verbose=False), min((folder / "photos" / KINDS[1]).iterdir())
    assert client.predict(api_name="/indices") == ["good.index", "random.index"]
    found = client.predict(handle_file(photo), "", "good.index", [], 3, api_name="/search")
    assert [n["rank"] for n in found["neighbours"]] == [1, 2, 3] and found["in_catalogue"]
    assert found["neighbours"][0] | {"similarity": 1} == {
        "rank": 1, "photo": str(photo), "label": KINDS[1], "similarity": 1}  # fmt: skip
    name = f"{KINDS[1]}/{photo.name}"
    asked = json.dumps({"data": [None, name, "good.index", [KINDS[0]], 2]}).encode()
    post = urllib.request.Request(
        f"{address}gradio_api/call/search", asked, {"Content-Type": "application/json"}
    )
    event = json.load(urllib.request.urlopen(post, timeout=30))["event_id"]
    url = f"{address}gradio_api/call/search/{event}"
    (said,) = json.loads(urllib.request.urlopen(url, timeout=30).read().split(b"data: ")[1])
    assert [n["label"] for n in said["neighbours"]] == [KINDS[0]] * 2
    wrong = client.predict(None, "", "good.index", ["no such"], 3, api_name="/search")
    assert wrong == {"error": "photo: drop one, or type the name of one of the index."}
    for words, *rest in (
        ("k: expected at least 1 neighbour", "good.index", [], 0),
        ("k: expected a whole number of neighbours, got 'many'", "good.index", [], "many"),
        ("classes: expected a list of names, got 5", "good.index", 5, 1),
        ("the index has no photo of class 'no such'", "good.index", ["no such"], 1),
        ("index: expected one of good.index, random.index", "none.index", [], 1),
    ):
        assert words in client.predict(None, name, *rest, api_name="/search")["error"]


def test_no_variable_widens_what_is_served_and_uploads_go(folder, monkeypatch, tmp_path):
    from see_nb.app import served

    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", str(tmp_path))
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    shutil.copy(folder / "good.index", folder / "a cut one.index")
    os.truncate(folder / "a cut one.index", 5000)  # does not stop the others
    with served([folder]) as place:
        assert place.startswith("http://127.0.0.1:")
        secret = f"gradio_api/file={tmp_path / 'secret.txt'}"
        assert answer_to(place, secret) in (403, 404)
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert uploads.is_dir() and uploads != tmp_path / "uploads"
        port = int(place.rstrip("/").rpartition(":")[2])
        for wrong, words in (
            ({"port": port}, f"port {port} at 127.0.0.1 .*in use"),
            ({"port": 99999}, "port 99999 at 127.0.0.1 .*0-65535"),
            ({"listen": "192.0.2.1"}, "at 192.0.2.1 cannot be used"),  # of no computer
        ):
            with pytest.raises(SeeError, match=words), served([folder], **wrong):
                pass
    (folder / "a cut one.index").unlink()
    assert not uploads.exists()
    assert os.environ["GRADIO_ALLOWED_PATHS"] == str(tmp_path)


def test_many_photos_do_not_go_to_the_browser(folder, tmp_path):
    from see_nb.app import Catalogue, make_page

    index = index_with_model(folder / "random.index")
    shutil.copy(folder / "random.pt", tmp_path / "random.pt")
    shutil.copy(folder / "random.index", tmp_path / "many.index")
    stored = Rows(tmp_path / "many.index")
    seen = ["c", index.photos.digest[0]]
    with stored.transaction():
        stored.put_photos({(str(folder), f"holiday {i:06d}.jpg"): seen for i in range(50_000)})
        stored.remember(str(tmp_path / "random.pt"))
    page = make_page(Catalogue([tmp_path]))
    assert len(json.dumps(page.get_config_file(), default=str)) < 200_000
