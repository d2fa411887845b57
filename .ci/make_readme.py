"""README.md from nbs/index.ipynb: text and stored outputs, no code and no sidebar; pictures go to nbs/images.

python .ci/make_readme.py [FOLDER]    writes FOLDER/README.md and FOLDER/nbs/images (default: the repository)
"""

import base64
import posixpath
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
HEAD = (
    "<!-- Made from nbs/index.ipynb by .ci/make_readme.py: change the notebook, not this file. -->"
)


def from_the_top(link: re.Match) -> str:
    "A link of the notebook, which starts in nbs, as the README needs it."
    target = link[1]
    if target.startswith(("https://", "#")):
        return link[0]
    return f"]({posixpath.normpath(posixpath.join('nbs', target))})"


def colab_badge(git_url: str, branch: str) -> list[str]:
    "A link that opens the tutorial on Colab, where settings.ini knows the repository's address."
    if not git_url.startswith("https://github.com/"):
        return []
    site = "https://colab.research.google.com"
    place = git_url.removeprefix("https://").removesuffix("/").replace(".com", "", 1)
    page = f"{site}/{place}/blob/{branch}/nbs/see_in_half_an_hour.ipynb"
    return [f"[![Open the tutorial in Colab]({site}/assets/colab-badge.svg)]({page})"]


def render(notebook) -> tuple[str, dict[str, bytes]]:
    "The text of the README, and the pictures by path."
    parts, pictures = [], {}
    for cell in notebook.cells:
        if "{toctree}" in cell.source:  # the sidebar of the site
            continue
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\]\(([^)]+)\)", from_the_top, cell.source))
            continue
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                path = f"nbs/images/index-{len(pictures)}.png"
                pictures[path] = base64.b64decode(data["image/png"])
                alt = re.search(r"^#\| fig-alt: (.*)", cell.source, flags=re.MULTILINE)
                parts.append(f"![{alt[1]}]({path})")
            elif data.get("text/markdown"):
                parts.append(data["text/markdown"])
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    badge = colab_badge(settings["DEFAULT"]["git_url"], settings["DEFAULT"]["branch"])
    return "\n\n".join([HEAD, *badge, *parts]) + "\n", pictures


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    text, pictures = render(nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4))
    (folder / "README.md").write_text(text, encoding="utf-8")
    for path, content in pictures.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
