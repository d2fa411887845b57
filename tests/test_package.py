"The package and the notebooks are in step, and the wings keep to their side of the house."

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
MODULES = sorted((ROOT / "see_nb").rglob("*.py"))
WINGS = ("method", "baselines", "data", "retrieval", "training", "experiments")
EXTRAS = ("notebooks", "photos", "app", "export")
OUTER = ("experiments", "app")  # what only the extras' libraries make work


def name_of(path: Path) -> str:
    return "/".join(path.relative_to(ROOT).parts[1:])


each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


def test_every_wing_is_looked_at():
    for wing in WINGS:
        assert sum(wing in path.parts for path in NOTEBOOKS) >= 3, wing
        assert sum(wing in path.parts for path in MODULES) >= 4, wing


def requirements(*names: str) -> set[str]:
    "The distributions of settings.ini, without versions."
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    words = " ".join(settings["DEFAULT"][name] for name in names).split()
    return {re.split(r"[<>=]", word)[0] for word in words}


def tree(folder: Path) -> dict[str, bytes]:
    "The modules of a package by path."
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.py")}


def test_the_package_is_what_the_notebooks_export(root, tmp_path):
    for name in ("nbs", "settings.ini", "setup.py", "pyproject.toml"):
        (shutil.copytree if (root / name).is_dir() else shutil.copy)(root / name, tmp_path / name)
    export = Path(sys.executable).with_name("nbdev_export")
    subprocess.run([export], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "pyproject.toml").read_bytes() == (root / "pyproject.toml").read_bytes()
    here, there = tree(root / "see_nb"), tree(tmp_path / "see_nb")
    assert sorted(here) == sorted(there)
    assert [name for name in here if here[name] != there[name]] == []


def test_the_package_imports_without_what_its_users_need_not_have(root):
    code = f"""
import importlib, pkgutil, sys
import see_nb
dev = "nbdev fastcore execnb ghapi pytest hypothesis".split()
extras = ("matplotlib seaborn IPython ipykernel nbclient nbconvert nbformat jupyterlab submitit "
          "gradio pillow_heif onnxscript onnxruntime pyarrow").split()
sys.modules.update(dict.fromkeys(dev + extras))  # None: not installed
names = [m.name for m in pkgutil.walk_packages(see_nb.__path__, "see_nb.")]
outer = [n for n in names if n.split(".")[1] in {OUTER!r}]
for name in [n for n in names if n not in outer]:
    importlib.import_module(name)
for name in extras:
    del sys.modules[name]
for name in outer:
    importlib.import_module(name)
print(len(names), len(outer))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules, outer = map(int, done.stdout.split()[-2:])
    assert modules >= 40 and outer >= 5


DISTRIBUTIONS = {"faiss": "faiss-cpu", "PIL": "pillow", "IPython": "ipython", "sklearn": "scikit-learn",
                 "pytorch_metric_learning": "pytorch-metric-learning", "myst_nb": "myst-nb",
                 "sphinx_book_theme": "sphinx-book-theme",
                 "sphinx_copybutton": "sphinx-copybutton"}  # fmt: skip


def imported(tree: ast.AST) -> set[str]:
    "The distributions that a piece of code imports."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    names -= {*sys.stdlib_module_names, "see_nb", "__future__"}
    return {DISTRIBUTIONS.get(name, name) for name in names}


@each_module
def test_every_third_party_import_is_a_requirement(path):
    tree = ast.parse(path.read_text())
    core = requirements("requirements")
    extras = requirements(*(f"{extra}_requirements" for extra in EXTRAS))
    functions = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    at_once = imported(ast.Module([n for n in tree.body if n not in functions], []))
    assert imported(tree) <= core | extras
    if not set(OUTER) & set(path.relative_to(ROOT / "see_nb").with_suffix("").parts):
        assert at_once <= core


def test_an_inner_wing_imports_no_outer_one(root):
    lint = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(lint, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Contracts: 2 kept, 0 broken." in done.stdout, done.stdout


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@each_module
def test_nothing_private_crosses_modules(path):
    tree = ast.parse(path.read_text())
    aliases, private = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (
            node.level or (node.module or "").startswith("see_nb")
        ):
            private += [a.name for a in node.names if is_private(a.name)]
            aliases |= {a.asname or a.name for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if isinstance(node.value, ast.Name) and node.value.id in aliases:
                private.append(f"{node.value.id}.{node.attr}")
    assert private == []


@each_module
def test_exported_lines_are_at_most_100_wide_and_functions_readable(path):
    text = path.read_text()  # without what nbdev writes: the notebook's claim, the list of names
    text = re.sub(r'\A""".*?"""|^__all__ = \[.*?\]$', "", text, flags=re.DOTALL | re.MULTILINE)
    wide = [line for line in text.splitlines() if len(line) > 100]
    assert wide == [] or path.name == "_modidx.py"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno > 60] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebooks_follow_the_house_rules(path):
    assert path.stat().st_size < 500_000
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0].source.splitlines()
    assert first[0].startswith("# ") and any(line.startswith("> ") for line in first)
    runs = path.parent.name == "experiments" and path.stem.endswith("_run")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not re.search(r"^\s*(from|import) (fastcore|nbdev)\b", cell.source, re.MULTILINE)
            assert not [o for o in cell.outputs if o.output_type == "error"]
            assert not [o for o in cell.outputs if o.get("name") == "stderr"]  # paths, warnings
            assert not (runs and cell.outputs)
            for output in cell.outputs:
                assert len(output.get("data", {}).get("image/png", "")) * 3 / 4 < 100_000
    if not runs and path.name != "index.ipynb":
        assert "**Takes**" in notebook.cells[0].source


@pytest.fixture(scope="module")
def built(root, tmp_path_factory) -> Path:
    "The folder of the sdist and of the wheel that is built from it."
    folder = tmp_path_factory.mktemp("build")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listed, cwd=root, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0"):
        if name and (root / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / "source" / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist"]
    subprocess.run([*build, folder / "source"], check=True, timeout=300, capture_output=True)
    return folder / "dist"


def test_the_wheel_has_every_wing_and_asks_for_no_more_than_it_needs(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
        points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    modules = {path.relative_to(ROOT).as_posix() for path in MODULES}
    assert modules | {"see_nb/py.typed"} <= names
    assert not any(n.startswith(("nbs/", "tests/")) for n in names)
    lines = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    needed = {re.split(r"[ <>=]", line)[1] for line in lines if "extra ==" not in line}
    assert needed == requirements("requirements")
    assert not needed & requirements("notebooks_requirements", "dev_requirements")
    assert {*EXTRAS, "dev"} == set(re.findall(r"^Provides-Extra: (\w+)", metadata, re.MULTILINE))
    assert "see-nb = see_nb.__main__:main" in points
    links = re.findall(r"\]\(([^)#]+)\)", metadata)
    assert links and all(link.startswith("https://") for link in links)
    assert "github.com/see-nb" not in metadata  # an address is set in settings.ini or not given


def test_the_sdist_has_sources_and_tests(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    notebooks = {path.relative_to(ROOT).as_posix() for path in NOTEBOOKS}
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py")}
    assert "tests/conftest.py" in tests
    assert notebooks | tests <= inside
    assert {"settings.ini", "LICENSE", "README.md", ".ci/make_readme.py", "CHANGELOG.md"} <= inside
