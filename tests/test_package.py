"The package, the README and the notebooks are in step, and the package stands without nbdev."

import filecmp
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest


def test_the_package_is_what_the_notebooks_export(root, tmp_path):
    for name in ("nbs", "settings.ini", "setup.py", "pyproject.toml"):
        (shutil.copytree if (root / name).is_dir() else shutil.copy)(root / name, tmp_path / name)
    subprocess.run(
        [Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True, timeout=120
    )
    here, there = root / "see_nb", tmp_path / "see_nb"
    files = sorted(p.name for p in here.glob("*.py"))
    assert files == sorted(p.name for p in there.glob("*.py"))
    assert filecmp.cmpfiles(here, there, files, shallow=False)[1:] == ([], [])


def test_the_readme_is_made_from_the_index(root, tmp_path):
    subprocess.run(
        [sys.executable, root / ".ci" / "make_readme.py", tmp_path], check=True, timeout=60
    )
    assert (tmp_path / "README.md").read_text() == (root / "README.md").read_text()
    for picture in (tmp_path / "nbs" / "images").iterdir():
        assert picture.read_bytes() == (root / "nbs" / "images" / picture.name).read_bytes()


def test_every_link_of_the_readme_leads_somewhere(root):
    import re

    text = (root / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(targets) > 10
    assert [t for t in targets if not t.startswith("https://") and not (root / t).exists()] == []


def test_the_package_imports_without_nbdev_and_its_helpers(root):
    code = (
        "import sys, importlib, pkgutil\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('nbdev', 'fastcore', 'execnb', 'ghapi'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import see_nb\n"
        "for m in pkgutil.iter_modules(see_nb.__path__):\n"
        "    if not m.name.startswith('_'): importlib.import_module('see_nb.' + m.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


def test_every_third_party_import_is_a_requirement(root):
    import ast

    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini")
    requirements = settings["DEFAULT"]["requirements"]
    names = {
        "faiss": "faiss-cpu",
        "pytorch_metric_learning": "pytorch-metric-learning",
        "PIL": "matplotlib",
        "IPython": "ipython",
    }
    for path in (root / "see_nb").glob("*.py"):
        if path.name == "_modidx.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            for module in (m.split(".")[0] for m in modules if m):
                if module != "see_nb" and module not in sys.stdlib_module_names:
                    assert names.get(module, module) in requirements, (path.name, module)


def test_dev_pins_are_those_that_work_together(root):
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini")
    for pin in ("nbdev==2.4.14", "fastcore>=1.12.3,<2", "execnb>=0.1.12,<0.2", "ghapi<2"):
        assert pin in settings["DEFAULT"]["dev_requirements"].split()


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "nbs").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_notebooks_follow_the_house_rules(path):
    assert path.stat().st_size < 500_000
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0].source.splitlines()
    assert first[0].startswith("# ") and any(line.startswith("> ") for line in first)
    run_notebook = path.name[:2].isdigit() and 10 <= int(path.name[:2]) <= 19
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not [o for o in cell.outputs if o.output_type == "error"]
            assert not (run_notebook and cell.outputs)
            for output in cell.outputs:
                assert len(output.get("data", {}).get("image/png", "")) * 3 / 4 < 100_000
    if not run_notebook and path.name != "index.ipynb":
        assert "**Takes**" in notebook.cells[0].source


def test_sdist_and_wheel_have_all_that_they_need(root, tmp_path):
    source = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout
    for name in tracked.decode().split("\0"):
        if name and (root / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, source / name)
    build = [sys.executable, "-m", "build", "--outdir", tmp_path / "dist", source]
    subprocess.run(
        build,
        check=True,
        timeout=300,
        capture_output=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    import tarfile
    import zipfile

    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
        points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    modules = {p.name for p in (root / "see_nb").glob("*.py")}
    assert modules <= {Path(n).name for n in names} and not any(
        n.startswith(("nbs/", "tests/")) for n in names
    )
    needed = [
        line
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert needed and not any("nbdev" in line or "fastcore" in line for line in needed)
    assert "see-nb = see_nb.cli:main" in points
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {"settings.ini", "LICENSE", "README.md", "nbs/00_centers.ipynb"} <= inside
