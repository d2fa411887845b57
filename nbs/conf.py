"The site: `sphinx-build nbs see-nb-site` makes it of the notebooks as they are stored."

import contextlib
import io
import json
import os
import re
from pathlib import Path

import myst_nb.sphinx_ext
from fastcore.docments import docments

from see_nb.cli import COMMANDS, main

project = html_title = "SEE: Spherical Embedding Expansion"
author = copyright = "the see_nb contributors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx-mathjax-offline"]
exclude_patterns = ["_build", "**/results/*", "**/paper/*", "**/.ipynb_checkpoints"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
smartquotes = False
default_role = "code"
add_module_names = False
autodoc_preserve_defaults = True  # as they are written, not as they print
python_maximum_signature_line_length = 70
autodoc_typehints = "description"
autodoc_member_order = "bysource"
html_theme = "sphinx_book_theme"
html_static_path = ["_static", "images"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_search_scorer = str(Path(__file__).parent / "_static" / "scorer.js")
html_favicon = "_static/icon.svg"
html_copy_source = html_show_sphinx = html_use_index = False
html_sidebars = {"**": ["navbar-logo.html", "sbt-sidebar-nav.html"]}
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False,
                      "show_toc_level": 2, "show_navbar_depth": 1}  # fmt: skip
TAGS = dict(hide="remove-cell", default_exp="remove-cell", echo="remove-input", fold="hide-input")
CLICK = "\n\n<details><summary>{}</summary>\n\n{}\n\n</details>"


def read_page(app, name: str, source: list[str]) -> None:
    "A notebook as myst-nb reads it; a module's page ends with its reference."
    if not source[0].lstrip().startswith("{"):
        return
    notebook = json.loads(source[0])
    cells = [read_cell(name, cell) for cell in notebook["cells"]]
    if module := re.search(r"#\| default_exp ([\w.]+)", source[0]):
        text = "## Reference" + reference_of(module[1])
        cells.append({"cell_type": "markdown", "id": "reference", "metadata": {}, "source": text})
    notebook["metadata"]["source_map"] = list(range(len(cells)))  # else a cell counts 10,000 lines
    source[0] = json.dumps(notebook | {"cells": cells})


def read_cell(name: str, cell: dict) -> dict:
    "Directives of nbdev and Quarto become tags of myst-nb and the text beside a figure."
    lines = r"^#\|\s*([\w-]+):? ?(.*)\n?"
    flags = dict(re.findall(lines, "".join(cell["source"]), flags=re.M))
    text = re.sub(lines, "", "".join(cell["source"]), flags=re.M)
    tags = [TAGS[flag] for flag in flags if flag in TAGS]
    if name.endswith(("cli", "_report")) or "export" in flags and not name.startswith("method/"):
        tags.append("hide-input")
    defined = ", ".join(re.findall(r"^(?:def|class) (\w+)", text, flags=re.M)) or "code"
    options = {"code_prompt_show": f"Show {defined}", "image": {"alt": flags.get("fig-alt", "")}}
    return cell | {"source": text, "metadata": {"tags": tags, "mystnb": options}}


def reference_of(module: str) -> str:
    "All names of a module; of the program, what each command says today."
    if module != "cli":
        module = f"see_nb.{module}".removesuffix(".__init__")
        members = f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```"
        return CLICK.format(f"All of {module}", members)
    os.environ["COLUMNS"], texts = "76", ""  # what a page is wide
    for name in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            main([name, "--help"])
        texts += CLICK.format(f"see-nb {name}", f"```text\n{said.getvalue().rstrip()}\n```")
    return texts


def read_comments(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    "Comments beside parameters and results as fields; only what is in backticks has a meaning."
    lines.append("")
    with contextlib.suppress(TypeError, ValueError, OSError, SyntaxError):  # made at run time
        found = docments(thing, full=True) if what in ("function", "method", "class") else {}
        for parameter, about in found.items():
            if about.docment and parameter != "self":
                field = "returns" if parameter == "return" else f"param {parameter}"
                lines.append(f":{field}: {' '.join(about.docment.split())}")
    marks = r"(`[^`]*`)|([*|]|(?<=\w)_(?!\w))"
    lines[:] = [re.sub(marks, lambda m: m[1] or f"\\{m[2]}", line) for line in lines]


def setup(app) -> None:
    myst_nb.sphinx_ext.OUTPUT_FOLDER = Path(app.doctreedir, "notebooks")  # not beside the site
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_comments)
