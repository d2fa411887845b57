"What a user sees: help, errors, the book, and Ctrl-C."

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from see_nb.training.results import read_rows


def test_help_names_every_command_and_option(see_nb_command):
    overview = see_nb_command("--help").stdout
    assert all(command in overview for command in ("reproduce", "train", "evaluate", "datasets"))
    for command, options in {
        "reproduce": ("--preset", "--output", "--only"),
        "train": ("--preset", "--dataset", "--root", "--backbone", "--weights", "--embedding-size", "--image-size", "--loss", "--see",
                  "--no-see", "--n-expansion", "--weight", "--epochs", "--precision", "--seed", "--output", "--resume", "--show"),
        "evaluate": ("--checkpoint", "--dataset", "--root"),
        "datasets": ("check", "--root", "--no-decode"),
    }.items():  # fmt: skip
        text = see_nb_command(command, "--help").stdout
        for option in options:
            assert option in text, (command, option)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["train", "--dataset", "cub"],
            "dataset: expected one of glyphs, omniglot, cub200, cub50, cars196, sop, inshop, folder, got 'cub'",
        ),
        (["train", "--root", "/no/such/folder"], "root: there is no folder /no/such/folder"),
        (["train", "--embedding-size", "8"], "need at least 9 (K + 1), got 8"),
        (["train", "--batch-size", "2"], "A batch of one class has nothing to push apart"),
        (["train", "--backbone", "resnet5o"], "Close: resnet50"),
        (["train", "--loss", "triplets"], "loss: expected one of "),
        (["train", "--preset", "cub200-deit-128"], "Close: cub200-deit_small-128"),
        (
            ["train", "--preset", "cub200-deit_small-128", "--embedding-size", "8"],
            "need at least 9 (K + 1), got 8",
        ),
        (["train", "--dataset", "folder"], "root: expected the folder of your own photos"),
        (["evaluate", "--checkpoint", "/none.pt"], "checkpoint: there is no file /none.pt"),
        (["reproduce", "--notebooks", "/none"], "there is no 10_quick_run.ipynb in /none"),
        (["reproduce", "--only", "10", "99"], "only: expected some of 10, 10a, "),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(see_nb_command, tmp_path, arguments, message):
    done = see_nb_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_an_unknown_option_is_exit_code_2(see_nb_command):
    assert see_nb_command("train", "--embeding-size", "8").returncode == 2


def test_every_training_command_of_the_readme_is_understood(see_nb_command, root):
    lines = re.findall(
        r"see-nb train [^`\n]*--(?:dataset|preset)[^`\n]*", (root / "README.md").read_text()
    )
    assert len(lines) >= 4
    for line in lines:
        done = see_nb_command(*shlex.split(line)[1:], "--show")
        assert done.returncode == 0 and "embedding_size" in done.stdout, (line, done.stderr)


@pytest.fixture
def album(tmp_path) -> Path:
    "Photos of twelve classes, four each."
    colours = np.random.default_rng(0).integers(0, 200, (12, 3))
    for label, colour in enumerate(colours):
        (tmp_path / "photos" / f"kind {label}").mkdir(parents=True)
        for i in range(4):
            pixels = colour + np.random.default_rng(i).integers(0, 56, (90 + i, 100, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(
                tmp_path / "photos" / f"kind {label}" / f"{i}.jpg"
            )
    return tmp_path / "photos"


def test_your_own_photos_from_check_to_evaluation(see_nb_command, album, tmp_path):
    check = ("datasets", "check", "folder", "--root", album)
    done = see_nb_command(*check)
    assert done.returncode == 0 and "train: 6 of 6 classes, 24 of 24 images" in done.stdout
    train = ("train", "--dataset", "folder", "--root", album, "--output", tmp_path / "run", "--backbone", "conv4", "--image-size", 64,
             "--epochs", 2, "--batch-size", 8, "--validation", 0)  # fmt: skip
    done = see_nb_command(*train)
    assert done.returncode == 0, done.stderr
    assert "Proxy-Anchor + SEE on folder" in done.stdout and "img/s" in done.stderr
    metrics = [line.split() for line in done.stdout.splitlines() if line.endswith("%")]
    done = see_nb_command(
        "evaluate", "--checkpoint", tmp_path / "run" / "checkpoint.pt", "--root", album
    )
    assert [line.split() for line in done.stdout.splitlines() if line.endswith("%")] == metrics
    assert see_nb_command(*train).returncode == 2  # nothing is overwritten
    done = see_nb_command(*train, "--resume")
    assert done.returncode == 0 and len(read_rows(tmp_path / "run" / "results.jsonl")) == 1
    photo = album / "kind 3" / "2.jpg"
    photo.write_bytes(photo.read_bytes()[:200])
    done = see_nb_command(*check)
    assert (
        done.returncode == 1
        and "1 of 48 photos are damaged" in done.stderr
        and "kind 3/2.jpg" in done.stderr
    )
    assert see_nb_command(*check, "--no-decode").returncode == 0


def test_datasets_lists_where_what_and_how(see_nb_command, tmp_path):
    text = see_nb_command("datasets", "--root", tmp_path).stdout
    assert "not drawn yet" in text and "not there" in text and str(tmp_path / "omniglot-py") in text


@pytest.fixture
def toy_notebooks(tmp_path) -> Path:
    "A run notebook that writes five rows, slowly, and a report that tables and draws them."
    new = nbformat.v4
    run = (
        "import os, time\nfrom pathlib import Path\nfrom tqdm import tqdm\nfrom see_nb.training.results import append_row, read_rows\n"
        "path = Path(os.environ['SEE_NB_OUTPUT']) / 'results.jsonl'\nn = len(read_rows(path))\n"
        "for i in tqdm(range(n, 5)):\n    append_row({'i': i}, path)\n    time.sleep(1)"
    )
    report = (
        "import os, pandas as pd, matplotlib.pyplot as plt\nfrom see_nb.training.results import read_rows\n"
        "rows = read_rows(os.environ['SEE_NB_OUTPUT'] + '/results.jsonl')\nplt.plot(rows.i)\nrows"
    )
    folder = tmp_path / "nbs"
    folder.mkdir()
    for name, title, code in (
        ("10_quick_run", "Runs", run),
        ("20a_small_experiments", "Report", report),
    ):
        cells = [
            new.new_markdown_cell(
                f"# {title}\n\n> Claim with $x^2$.\n\n## Part of {title}\n\nSee [runs](10_quick_run.ipynb)."
            ),
            new.new_code_cell(code),
        ]
        nbformat.write(new.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder


def test_reproduce_writes_a_book_whose_links_resolve(see_nb_command, toy_notebooks, tmp_path):
    book = tmp_path / "book"
    done = see_nb_command("reproduce", "--notebooks", toy_notebooks, "--output", book)
    assert done.returncode == 0, done.stderr
    assert str(book / "index.html") in done.stdout and "5/5" in done.stderr
    index = (book / "index.html").read_text()
    assert "data:image/png" in index and "<table" in index and "Part of Report" in index
    for page in book.glob("*.html"):
        text = page.read_text()
        assert "$x^2$" not in text
        for link in re.findall(r'href="([^"#]+)"', text):
            assert link.startswith(("https://", "data:")) or (book / link).exists(), (
                page.name,
                link,
            )
        assert not re.search(r'<script[^>]*src=|<link[^>]*href="http', text), page.name


def test_after_ctrl_c_finished_rows_stay_and_the_next_call_goes_on(toy_notebooks, tmp_path):
    book = tmp_path / "book"
    command = [
        Path(sys.executable).with_name("see-nb"),
        "reproduce",
        "--notebooks",
        toy_notebooks,
        "--output",
        book,
    ]
    rows = book / "results.jsonl"
    heard = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a shell may have started the tests with Ctrl-C switched off
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    deadline = time.time() + 120
    while len(read_rows(rows)) < 2 and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    kept = len(read_rows(rows))
    assert process.returncode == 130 and "`reproduce` goes on by itself" in errors
    assert "Traceback" not in errors and 2 <= kept < 5
    time.sleep(1.5)
    assert len(read_rows(rows)) == kept  # the kernel is gone as well
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and sorted(read_rows(rows).i) == [0, 1, 2, 3, 4]


def test_a_failing_notebook_is_named(see_nb_command, toy_notebooks, tmp_path):
    path = toy_notebooks / "20a_small_experiments.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("raise RuntimeError('no rows')"))
    nbformat.write(notebook, path)
    done = see_nb_command("reproduce", "--notebooks", toy_notebooks, "--output", tmp_path / "book")
    assert (
        done.returncode == 2
        and "20a_small_experiments.ipynb stopped: RuntimeError: no rows" in done.stderr
    )
