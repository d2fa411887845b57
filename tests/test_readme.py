"The README: made from the index, short, with links that lead somewhere and Python that runs."

import re
import runpy
import subprocess
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def readme(root) -> str:
    return (root / "README.md").read_text()


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)


def test_the_readme_is_made_from_the_index(root, readme, tmp_path):
    subprocess.run([sys.executable, root / ".ci/make_readme.py", tmp_path], check=True, timeout=60)
    assert (tmp_path / "README.md").read_text() == readme


def test_the_colab_badge_needs_a_real_address(root):
    names = runpy.run_path(str(root / ".ci" / "make_readme.py"))
    assert names["colab_badge"]("", "main") == []
    (badge,) = names["colab_badge"]("https://github.com/someone/see_nb", "main")
    assert "/github/someone/see_nb/blob/main/nbs/see_in_half_an_hour.ipynb)" in badge
    assert (root / "nbs" / "see_in_half_an_hour.ipynb").exists()


def test_links_and_pictures_are_there_and_it_fits_a_few_screens(root, readme):
    targets = re.findall(r"\]\(([^)#]+)\)", readme)
    assert len(targets) > 6
    assert [t for t in targets if not t.startswith("https://") and not (root / t).exists()] == []
    assert len(readme.split()) <= 900


def test_its_python_runs(readme):
    torch.manual_seed(0)
    embeddings, labels = torch.randn(20, 128, requires_grad=True), torch.arange(20) % 5
    names = {"embeddings": embeddings, "labels": labels}
    snippets = blocks(readme, "python")
    assert len(snippets) == 2
    exec(snippets[0], names)  # noqa: S102
    assert embeddings.grad.abs().sum() > 0 and not names["loss"].encoder_grad
    exec(snippets[1], names)  # noqa: S102
    published = names["loss"]
    assert not published.encoder_grad
    assert published.epoch == 59 and published(embeddings, labels).isfinite()


def test_the_test_command_is_the_one_that_ci_runs(readme):
    assert len(re.findall(r"^pip install .*check\.py$", readme, re.MULTILINE)) == 1
