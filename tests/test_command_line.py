"What a user of the command sees: help, errors, Ctrl-C, and a reproduction."

import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import see_nb
from see_nb.cli import COMMANDS, Command, Running, parse
from see_nb.training.recipes import Recipe
from see_nb.training.results import read_rows
from see_nb.training.run import load_run

OPTIONS = {
    name: [
        field.name.removeprefix("n_" if field.name == "n_workers" else "").replace("_", "-")
        for part in ([kind, Recipe, Running] if name == "train" else [kind])
        for field in dataclasses.fields(part)
        if field.name not in ("recipe", "running")
    ]
    for name, kind in COMMANDS.items()
}
BY_PLACE = {"action", "name", "photos", "folders", "losses"}  # needs no option


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(see_nb_command, command):
    done = see_nb_command(command, "--help")
    assert done.returncode == 0 and not done.stderr
    text = " ".join(done.stdout.split())
    for name in {*OPTIONS[command]} - BY_PLACE:
        assert re.search(rf"--(no-)?{name}\b", text), name
    assert f"{command} {COMMANDS[command].__doc__}"[:40] in " ".join(
        see_nb_command("--help").stdout.split()
    )


def test_the_version_is_told(see_nb_command):
    assert see_nb_command("--version").stdout == f"see-nb {see_nb.__version__}\n"


def test_help_loads_no_library():
    code = (
        "import sys\nfrom see_nb.cli import COMMANDS, main\n"
        "for name in COMMANDS: assert main([name, '--help']) == 0\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = eval(done.stdout.splitlines()[-1])
    assert "tyro" in loaded
    assert not set(loaded) & {"torch", "numpy", "pandas", "scipy", "PIL", "matplotlib", "timm"}


WRONG_INPUT = {  # one sentence of the package
    "train --dataset cub": "dataset: expected one of glyphs, omniglot, cub200, ",
    "train --root /no/such/folder": "root: there is no folder /no/such/folder",
    "train --embedding-size 8": "need at least 9 (K + 1), got 8",
    "train --loss soft_tripel": "Did you mean 'soft_triple'?",
    "train --preset cub200-deit-128": "Did you mean 'cub200-deit_small-128'?",
    "train --preset cub200-deit_small-128 --embedding-size 8": "need at least 9 (K + 1), got 8",
    "train --preset cub200-deit_small-128 --size small": "--size or --preset, got both",
    "train --size smal": "size: expected one of small, medium, large, auto, got 'smal'. Did you mean",
    "train --size small": "root: expected the folder of your own photos",
    "train --dataset folder": "root: expected a folder, got None. Your own photos:",
    "evaluate --checkpoint /none.pt": "checkpoint: /none.pt: cannot be read (No such file",
    "evaluate --checkpoint a --index b": "expected --checkpoint FILE or --index FILE, got both.",
    "compare proxy_anchor os:path --preset cub200-deit_small-128": "loss: os:path cannot be found (",
    "reproduce --notebooks /none": "there is no experiments/*_run.ipynb in /none",
    "reproduce --only nine": "only: ",
    "datasets check cub20": "Did you mean 'cub200'?",
    "datasets --root /no/such/folder": "root: there is no folder /no/such/folder",
}
WRONG_WORDS = {  # what the parser says in its box
    "tran": "Available subcommands: reproduce, train,",
    "reproduce --preset quik": "invalid choice 'quik'",
    "datasets chek": "invalid choice 'chek' for argument 'action'",
    "train --embeding-size 8": "Perhaps you meant: --embedding-size",
    "train --nosee": "Perhaps you meant: --see, --no-see",
    "train --epochs 1.5": "Error parsing --epochs: invalid literal for int()",
    "train --weight much": "Error parsing --weight: could not convert string to float: 'much'",
    "train --checkpoint-every often": "Error parsing --checkpoint-every: no type matching INT",
    "train --epochs": "Missing value for argument '--epochs'",
    "evaluate": "checkpoint: expected --checkpoint FILE or --index FILE, got neither.",
    "evaluate --checkpoint a b": "Unrecognized options: b",
}


@pytest.mark.parametrize("line", [*WRONG_INPUT, *WRONG_WORDS])
def test_wrong_input_is_said_and_exit_code_2(see_nb_command, tmp_path, line):
    done = see_nb_command(*line.split(), cwd=tmp_path)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and not done.stdout and "Traceback" not in said
    if line in WRONG_INPUT:
        assert said.startswith("see-nb: ") and done.stderr.count("\n") == 1
        assert WRONG_INPUT[line] in said
    else:
        assert WRONG_WORDS[line] in said and "NoneType" not in said


@pytest.mark.parametrize("encoding, shown", [("ascii", r"\u5199\u771f"), ("utf-8", "写真")])
def test_a_name_that_the_console_does_not_have_is_printed_escaped(tmp_path, encoding, shown):
    (tmp_path / "写真").mkdir()
    command = [sys.executable, "-m", "see_nb", "datasets", "--root", tmp_path / "写真"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0 and shown in done.stdout.decode()


def test_who_learns_is_a_switch():
    for option, learns in ((), None), (("--no-encoder-grad",), False), (("--encoder-grad",), True):
        assert parse(["train", *option]).recipe.encoder_grad is learns


@pytest.fixture
def album(tmp_path) -> Path:
    "Photos of twelve classes, four each."
    for i in range(48):
        photo(tmp_path / "photos" / f"kind {i // 4}" / f"{i % 4}.jpg", i, (100, 90))
    return tmp_path / "photos"


@pytest.mark.parametrize("page", ["README.md", "nbs/own_photos.md"])
def test_every_command_of_the_guides_is_understood(see_nb_command, root, album, tmp_path, page):
    album.rename(tmp_path / "my-photos")
    text = re.sub(r"\\\n\s*", "", (root / page).read_text("utf-8"))
    lines = re.findall(r"(?:^|`)see-nb (\w+ [^`\n]*)", text, re.MULTILINE)
    assert len(lines) >= 5
    for line in map(shlex.split, lines):
        if line[0] == "train":
            done = see_nb_command(*line, "--show", cwd=tmp_path)
            assert done.returncode == 0 and "embedding_size" in done.stdout, (line, done.stderr)
        else:
            assert isinstance(parse(line), Command), line


@pytest.mark.parametrize(
    "options, chosen",
    [
        ("small", "small: dataset folder, ... batch_size 12"),  # two of each of six classes
        ("small --embedding-size 32 --image-size 0", "small: ... embedding_size 32"),
        ("small --test-fraction 0.25", "small: ... batch_size 18"),
        ("large", "large: ... backbone tf_efficientnet_lite0"),
        ("auto", "auto, medium: ... backbone tf_efficientnet_lite0"),
    ],
)
def test_a_size_chooses_the_recipe_by_the_photos(see_nb_command, album, options, chosen):
    (album / "notes.txt").touch()
    done = see_nb_command("train", "--root", album, "--show", "--size", *options.split())
    warned = done.stderr.startswith("see-nb: warning: folder in ") and "notes.txt" in done.stderr
    assert warned and done.stderr.count("\n") == 1
    first = done.stdout.splitlines()[0]
    assert all(part in f"{first}, " for part in f"Recipe of size {chosen}".split(" ... "))
    assert "image-size" not in options or "image_size" not in first  # an option wins


def test_a_gpu_chooses_the_large_recipe(see_nb_command, album, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    done = see_nb_command("train", "--root", album, "--show", "--size", "auto")
    assert done.stdout.startswith("Recipe of size auto, large: ")


def test_your_own_photos_from_check_to_evaluation(see_nb_command, album, tmp_path):
    check = ("datasets", "check", "folder", "--root", album)
    done = see_nb_command(*check)
    assert done.returncode == 0 and "train: 6 of 6 classes, 24 of 24 images" in done.stdout
    train = ("train", "--dataset", "folder", "--root", album, "--output", tmp_path / "run", "--backbone", "conv4", "--image-size", 64,
             "--epochs", 2, "--batch-size", 8, "--validation", 0)  # fmt: skip
    done = see_nb_command(*train)
    assert done.returncode == 0, done.stderr
    assert "Proxy-Anchor + SEE, as published on folder" in done.stdout and "img/s" in done.stderr
    few = [line for line in done.stderr.splitlines() if "only 6 classes train" in line]
    assert len(few) == 1 and few[0].startswith("see-nb: warning: folder: only 6 classes train; ")
    assert few[0].endswith("or change test_fraction (--test-fraction).")
    assert "UserWarning" not in done.stderr
    metrics = [line.split() for line in done.stdout.splitlines() if line.endswith("%")]
    done = see_nb_command(
        "evaluate", "--checkpoint", tmp_path / "run" / "checkpoint.pt", "--root", album
    )
    assert [line.split() for line in done.stdout.splitlines() if line.endswith("%")] == metrics
    assert see_nb_command(*train).returncode == 2  # nothing is overwritten
    done = see_nb_command(*train, "--resume")
    assert done.returncode == 0 and len(read_rows(tmp_path / "run" / "results.jsonl")) == 1
    cut = album / "kind 3" / "2.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    done = see_nb_command(*check)
    assert (
        done.returncode == 2
        and "1 of 48 photos cannot be read" in done.stderr
        and "kind 3/2.jpg" in done.stderr
    )
    assert see_nb_command(*check, "--no-decode").returncode == 0
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    run = load_run(checkpoint)
    run.row["raw"] = run.metrics | {"embedding_size": 64}
    run.save(checkpoint)
    evaluate = ("evaluate", "--checkpoint", checkpoint, "--root", album)
    assert "raw pretrained network" in see_nb_command(*evaluate).stdout
    photo(album / "kind 4" / "0.jpg", 99, (100, 90))  # other test photos: the raw network's are old
    done = see_nb_command(*evaluate)
    assert done.returncode == 0 and "raw pretrained network" not in done.stdout
    (album / "kind 3").rename(album / "one more")  # it trained: no report tests on it
    done = see_nb_command(*train, "--resume")
    assert done.returncode == 2 and "expected all classes that trained or none" in done.stderr
    done = see_nb_command(*check, "--damaged", photo(tmp_path / "mine.csv", kind="PNG"))
    assert done.returncode == 2 and "mine.csv: is there, and see-nb did not write" in done.stderr


@pytest.mark.parametrize("arguments", [["train", "--help"], ["datasets"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(see_nb_process, arguments):
    read, write = os.pipe()
    os.close(read)  # as `see-nb datasets | head -1` when head has seen enough
    process = see_nb_process(*arguments, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (141, "")


def hear_ctrl_c() -> None:
    "A shell may have started the tests with Ctrl-C switched off."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    "module, arguments",
    [
        ("tyro.constructors", ["datasets"]),
        ("torch._C", ["datasets"]),
        ("torchvision", ["evaluate", "--checkpoint", "none.pt"]),
    ],
    ids=["tyro.constructors", "torch._C", "torchvision"],
)
def test_ctrl_c_while_it_starts_ends_quietly(see_nb_process, module, arguments):
    process = see_nb_process(
        *arguments,
        python=("-X", "importtime"),  # a line for each module that has been imported
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=hear_ctrl_c,
    )
    for line in process.stderr:
        if line.endswith(f" {module}\n"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors


NUMBERS = ["0", "1", "-1", "2.5", "nan", "inf", "-inf", "1e-9", "1e400", "9" * 30, "", "x", "0x10"]
WORDS = [" ", "glyphs", "cub200", "folder", "/", ".", "~nobody-of-that-name", "a" * 300, "é", "-"]
words = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12),
)


@st.composite
def command_lines(draw):
    "A command with some of its options, some misspelt, and values right and wrong."
    command = draw(st.sampled_from(["train", "train", "evaluate", "datasets", "nothing"]))
    line = [command, *(draw(st.lists(words, max_size=2)) if command == "datasets" else [])]
    for name in draw(st.lists(st.sampled_from(OPTIONS.get(command, ["root"])), max_size=4)):
        flag = draw(st.sampled_from([f"--{name}", f"--no-{name}", f"--{name}s", f"--{name}="]))
        line += [flag, *draw(st.lists(words, max_size=1))]
    return [*line, "--show"] if command == "train" else line  # to check is enough, do not train


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(command_lines())
def test_any_command_line_is_done_or_answered(see_nb_command, tmp_path_factory, line):
    done = see_nb_command(*line, cwd=tmp_path_factory.getbasetemp())
    assert done.returncode in (0, 2), (line, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr if done.returncode else done.stdout


@pytest.fixture(scope="module")
def toy_notebooks(tmp_path_factory, root) -> Path:
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
    folder = tmp_path_factory.mktemp("toys") / "nbs"
    (folder / "experiments").mkdir(parents=True)
    for name, title, code in (
        ("quick_run", "Runs", run),
        ("quick_report", "Report", report),
    ):
        cells = [
            new.new_markdown_cell(
                f"# {title}\n\n> Claim with $x^2$.\n\n## Part of {title}\n\nSee [runs](quick_run.ipynb)."
            ),
            new.new_code_cell(code),
        ]
        nbformat.write(new.new_notebook(cells=cells), folder / "experiments" / f"{name}.ipynb")
    shutil.copy(root / "nbs" / "conf.py", folder)
    for name in ("_static", "images"):
        shutil.copytree(root / "nbs" / name, folder / name)
    (folder / "index.md").write_text("# Toys\n\n```{toctree}\n:glob:\n\nexperiments/*\n```\n")
    return folder


@pytest.fixture(scope="module")
def resumed(see_nb_process, see_nb_command, toy_notebooks, tmp_path_factory) -> SimpleNamespace:
    "A reproduction that Ctrl-C has ended after two rows, and the next call."
    site = tmp_path_factory.mktemp("resumed") / "site"
    command = ["reproduce", "--notebooks", toy_notebooks, "--output", site]
    process = see_nb_process(*command, stderr=subprocess.PIPE, preexec_fn=hear_ctrl_c)
    deadline = time.time() + 120
    while len(read_rows(site / "results.jsonl")) < 2 and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    kept = [len(read_rows(site / "results.jsonl"))]
    time.sleep(1.5)
    kept.append(len(read_rows(site / "results.jsonl")))
    stopped = SimpleNamespace(returncode=process.returncode, stderr=errors, kept=kept)
    return SimpleNamespace(stopped=stopped, done=see_nb_command(*command), site=site)


def test_after_ctrl_c_finished_rows_stay_and_the_next_call_goes_on(resumed):
    stopped = resumed.stopped
    assert stopped.returncode == 130
    assert (
        "interrupted. What was finished is kept: the same command again goes on." in stopped.stderr
    )
    assert "Traceback" not in stopped.stderr and 2 <= stopped.kept[0] < 5
    assert stopped.kept[1] == stopped.kept[0]  # the kernel is gone as well
    assert resumed.done.returncode == 0, resumed.done.stderr
    assert sorted(read_rows(resumed.site / "results.jsonl").i) == [0, 1, 2, 3, 4]


def test_reproduce_writes_a_site_and_nothing_beside_it(resumed, toy_notebooks):
    site, done = resumed.site, resumed.done
    assert str(site / "index.html") in done.stdout
    assert "quick_run" in done.stderr and "100% done" in done.stderr
    report = (site / "experiments" / "quick_report.html").read_text()
    assert re.search(r'<img [^>]*src="\.\./_images/[^"]+\.png"', report) and "<table" in report
    assert "$x^2$" not in report
    assert [path.name for path in site.parent.iterdir()] == ["site"]
    notebook = nbformat.read(toy_notebooks / "experiments" / "quick_report.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert not {"SEE_NB_OUTPUT", "SEE_NB_PRESET"} & os.environ.keys()


def test_a_failing_notebook_is_named(see_nb_command, toy_notebooks, tmp_path):
    shutil.copytree(toy_notebooks, tmp_path / "nbs")
    path = tmp_path / "nbs" / "experiments" / "quick_report.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(1, nbformat.v4.new_code_cell("raise RuntimeError('no rows')"))
    nbformat.write(notebook, path)
    command = ["reproduce", "--notebooks", tmp_path / "nbs", "--output", tmp_path / "site"]
    done = see_nb_command(*command, "--only", "quick_report")
    assert done.returncode == 2
    assert "quick_report.ipynb stopped: RuntimeError: no rows" in done.stderr
