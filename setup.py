"Everything comes from settings.ini, so that nbdev and pip read the same values."

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

EXTRAS = ("notebooks", "photos", "app", "export")
extras = {name: settings[f"{name}_requirements"].split() for name in (*EXTRAS, "dev")}
extras["dev"] += [word for name in EXTRAS for word in extras[name]]
urls = {"Source": settings["git_url"], "Documentation": settings["doc_host"]}


def readme_elsewhere(
    text: str,  # README.md, whose links start at the repository
    url: str,  # where the repository is, or nothing
) -> str:  # text that reads well on the package index
    "Links and pictures lead to the repository; when it has no address yet, their words stay."
    away = r"\((?!https?://|#)([^)]+)\)"
    pictures, links = rf"!\[([^\]]*)\]{away}", rf"(?<!!)\[((?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]{away}"
    for pattern, mark, kind, words in ((pictures, "!", "raw", ""), (links, "", "blob", r"\1")):
        there = rf"{mark}[\1]({url}/{kind}/main/\2)"
        text = re.sub(pattern, there if url else words, text)
    return text


# The mark of a typed package; nbdev exports modules only.
(here / "see_nb" / "py.typed").touch()
setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme_elsewhere((here / "README.md").read_text("utf-8"), urls["Source"]),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"],
    packages=find_packages(include=["see_nb", "see_nb.*"]),
    package_data={"see_nb": ["py.typed"]},
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    project_urls={name: url for name, url in urls.items() if url},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": ["see_nb=see_nb._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
