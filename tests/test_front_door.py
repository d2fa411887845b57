"Every name of the front door comes when it is asked for, and keeps its contract."

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import see_nb

CONTRACT = {  # name -> its first parameters
    "mmd_centers": "n_centers, *, dtype=None, device=None",
    "expand": "embeddings, centers, n_expansion, *, generator=None",
    "expand_reference": "embeddings, centers, n_expansion, *, generator=None",
    "ExpansionSchedule": "epochs, low=0.0, high=0.4, period=200",
    "ThresholdSchedule": "epochs",
    "select_closest": "similarity, fraction",
    "SEELoss": "loss, n_expansion=8, weight=0.2, schedule=None, fraction=0.4, encoder_grad=None, "
    "generator=None",
    "load_dataset": "name, root=None, split='train'",
    "create_model": "backbone",
    "load_model": "path",
    "recall_at_k": "query, query_labels, gallery=None, gallery_labels=None, ks=(1, 2, 4, 8)",
    "mean_average_precision_at_r": "query, query_labels, gallery=None, gallery_labels=None",
    "Recipe": "dataset='glyphs'",
    "train": "recipe",
    "evaluate": "model, dataset",
    "embed": "model, images",
    "Index": "",
    "SeeError": "*args",
}


def shapes(function, n: int | None = None) -> list[tuple]:
    "Name, default and kind of the first parameters."
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default, p.kind) for p in parameters if p.name != "self"][:n]


@pytest.mark.parametrize("name", CONTRACT)
def test_the_name_is_there_and_keeps_its_contract(name):
    value = getattr(see_nb, name)
    assert value.__module__.startswith("see_nb.") and name in dir(see_nb)
    if name == "SeeError":
        assert issubclass(value, ValueError)
    else:
        wanted = shapes(eval(f"lambda {CONTRACT[name]}: 0"))
        assert shapes(value, len(wanted)) == wanted


def test_the_published_setting_and_the_epoch_are_there():
    assert list(inspect.signature(see_nb.SEELoss.as_published).parameters)[:2] == ["loss", "epochs"]
    assert callable(see_nb.SEELoss.set_epoch)
    forward = list(inspect.signature(see_nb.SEELoss.forward).parameters)[1:6]
    assert forward == ["embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels"]


def test_type_checkers_read_the_names_that_are_imported():
    tree = ast.parse(Path(see_nb.__file__).read_text())
    (checked,) = [n for n in tree.body if isinstance(n, ast.If)]
    static = {
        alias.name: node.module.removeprefix("see_nb.")
        for node in checked.body
        for alias in node.names
    }
    assert static == see_nb._HOME and sorted(see_nb.__all__) == sorted(static)
    assert set(CONTRACT) == set(static)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'see_nb' has no attribute 'SEELos'"):
        see_nb.SEELos  # noqa: B018
    with pytest.raises(ImportError):
        from see_nb import SEELos  # noqa: F401


def test_the_import_is_instant_and_a_name_costs_little():
    code = (
        "import sys, time\n"
        "a = time.process_time(); import see_nb; b = time.process_time()\n"
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)\n"
        "import torch, pytorch_metric_learning.losses\n"
        "c = time.process_time(); from see_nb import SEELoss; d = time.process_time()\n"
        "print(b - a, d - c)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    package, name = map(float, done.stdout.split())
    assert package < 0.1 and name < 0.3
