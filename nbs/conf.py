"The site: `sphinx-build nbs see-nb-site` makes it of the notebooks as they are stored."

import contextlib
import io
import json
import os
import re
from configparser import ConfigParser
from pathlib import Path

import myst_nb.sphinx_ext
from fastcore.docments import docments

from see_nb.cli import COMMANDS, main

PATH = [  # what a reader reads, in this order; everything else is reference
    "see_in_half_an_hour",
    "glossary",
    "method/01_centers",
    "method/02_expansion",
    "method/03_curriculum",
    "method/04_see_loss",
    "method/05_adapters",
    "method/09_closed_form",
    "experiments/evidence_report",
    "experiments/why_report",
]
LISTED = {  # the pages of two parts of the reference; the others are the wings' folders
    "use": ["own_photos", "training/13_researchers", "training/12_export", "app", "cli"],
    "package": ["front_door", "errors", "files", "testing", "start"],
}
WINGS = ("method", "baselines", "data", "retrieval", "training", "experiments")
REFERENCE = [f"reference/{name}" for name in ("use", *WINGS, "package")]
HERE = Path(__file__).parent

settings = ConfigParser(delimiters=["="])
settings.read(HERE.parent / "settings.ini", encoding="utf-8")
project = "see_nb"
author = settings.get("DEFAULT", "author", fallback="the see_nb contributors")
copyright = settings.get("DEFAULT", "copyright", fallback=author)

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "**/results/*", "**/paper/*", "**/.ipynb_checkpoints"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
numfig = True
numfig_format = {"figure": "Figure %s", "table": "Table %s"}
smartquotes = False
default_role = "code"
add_module_names = False
python_maximum_signature_line_length = 70
autodoc_typehints = "description"
autodoc_member_order = "bysource"

html_theme = "sphinx_book_theme"
html_title = "SEE: Spherical Embedding Expansion"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(HERE / "_static" / "scorer.js")
html_favicon = "_static/icon.svg"
html_copy_source = False
html_show_sphinx = False
html_context = {"default_mode": "auto"}
html_sidebars = {"**": ["navbar-logo.html", "sbt-sidebar-nav.html"]}
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
}


def read_page(app, name: str, source: list[str]) -> None:
    "Notebooks as the site shows them; the front page and those of the wings with their sidebar."
    if name in REFERENCE:
        source[0] += toctree("", pages_of(name))
    if source[0].lstrip().startswith("{"):
        notebook = json.loads(source[0])
        folded = name == "cli" or name.endswith("_report")  # the answer first, code on a click
        notebook["cells"] = shown_cells(notebook["cells"], folded)
        if name == "cli":
            notebook["cells"].insert(1, markdown("help", command_help()))
        if name == "index":
            sidebar = toctree("Read", PATH) + toctree("Reference", REFERENCE)
            notebook["cells"].append(markdown("sidebar", sidebar))
        source[0] = json.dumps(notebook)


def shown_cells(cells: list[dict], folded: bool) -> list[dict]:
    "Without directives of nbdev and hidden cells; at the end what the module offers."
    module, shown = "", []
    for cell in cells:
        text = "".join(cell["source"])
        flags = dict(re.findall(r"^#\|\s*([\w-]+):? ?(.*)\n?", text, flags=re.M))
        module = flags.get("default_exp", module)
        if not {"hide", "default_exp"} & flags.keys():
            text = re.sub(r"^#\|.*\n?", "", text, flags=re.M)
            shown.append(shown_cell(cell, in_both_modes(text), flags, folded))
    if module not in ("", "cli"):  # the command line has its help
        name = f"see_nb.{module}".removesuffix(".__init__")
        directive = f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```"
        shown.append(markdown("reference", f"## Reference\n\n{directive}"))
    return shown


def shown_cell(cell: dict, text: str, flags: dict[str, str], folded: bool) -> dict:
    "The cell without its directives, which become options of myst-nb."
    hidden = flags.get("echo") == "false" or not text
    options = {"tags": ["remove-input"] if hidden else ["hide-input"] if folded else []}
    if "fig-cap" in flags:
        options["mystnb"] = {"figure": {"caption": flags["fig-cap"]}}
    return cell | {"source": text or "...", "metadata": options}


def in_both_modes(text: str) -> str:
    "Beside a picture in the text its dark twin, where there is one."

    def pair(found: re.Match) -> str:
        head, name = found.groups()
        if not (HERE / "images" / f"{name}-dark.png").exists():
            return found[0]
        return f"{head}{name}.png){{.only-light}} {head}{name}-dark.png){{.only-dark}}"

    return re.sub(r"(!\[[^\]]*\]\(images/)([\w-]+)\.png\)", pair, text)


def markdown(name: str, text: str) -> dict:
    "A cell of text."
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def command_help() -> str:
    "What the program says today, command by command."
    os.environ["COLUMNS"] = "76"  # what a page is wide
    parts = ["## The options of each command"]
    for name in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            main([name, "--help"])
        parts.append(f"### see-nb {name}\n\n```text\n{said.getvalue().rstrip()}\n```")
    return "\n\n".join(parts)


def toctree(caption: str, pages: list[str]) -> str:
    "A part of the sidebar: those of the pages that are there."
    there = [page for page in pages if any(HERE.glob(f"{page}.*"))]
    head = ["", "```{toctree}", ":maxdepth: 1"]
    head += [":hidden:", f":caption: {caption}"] if caption else []
    return "\n".join([*head, "", *(f"/{page}" for page in there), "```", ""])


def pages_of(name: str) -> list[str]:
    "The pages of a wing that are not on the reader's path."
    wing = Path(name).name
    if wing in LISTED:
        return LISTED[wing]
    found = sorted(f"{wing}/{path.stem}" for path in HERE.glob(f"{wing}/*.ipynb"))
    return [page for page in found if page not in (*PATH, *LISTED["use"])]


def read_comments(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    "Comments beside parameters, fields and results, as Sphinx wants them."
    if what not in ("function", "method", "class"):
        return
    try:
        found = docments(thing, full=True)
    except (TypeError, ValueError, OSError, SyntaxError):  # written in C, or made at run time
        return
    lines[:] = [*map(escaped, lines), ""]
    for parameter, about in found.items():
        if about.docment and parameter != "self":
            field = "returns" if parameter == "return" else f"param {parameter}"
            lines.append(f":{field}: {escaped(' '.join(about.docment.split()))}")


def escaped(text: str) -> str:
    "Plain text for reStructuredText: only what stands in backticks has a meaning."
    marks = r"`[^`]*`|[*|]|(?<=\w)_(?!\w)"
    return re.sub(marks, lambda m: m[0] if m[0].startswith("`") else f"\\{m[0]}", text)


def setup(app) -> None:
    "Hooks of Sphinx."
    myst_nb.sphinx_ext.OUTPUT_FOLDER = Path(app.doctreedir, "notebooks")  # not beside the site
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_comments)
