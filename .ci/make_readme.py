"""README.md from nbs/index.ipynb: text and stored outputs, no code; pictures go to nbs/images.

python .ci/make_readme.py [FOLDER]    writes FOLDER/README.md and FOLDER/nbs/images (default: the repository)
"""

import base64
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]


def render(notebook) -> tuple[str, dict[str, bytes]]:
    "The text of the README, and the pictures by path."
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                path = f"nbs/images/index-{len(pictures)}.png"
                pictures[path] = base64.b64decode(data["image/png"])
                parts.append(f"![Figure {len(pictures)}]({path})")
            elif "text/markdown" in data:
                parts.append(data["text/markdown"])
    head = "<!-- Made from nbs/index.ipynb by .ci/make_readme.py: change the notebook, not this file. -->"
    text = re.sub(
        r"\]\((\w+\.ipynb)", r"](nbs/\1", "\n\n".join(parts)
    )  # links of the notebook start in nbs
    return f"{head}\n\n{text}\n", pictures


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    text, pictures = render(nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4))
    (folder / "README.md").write_text(text, encoding="utf-8")
    for path, content in pictures.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
