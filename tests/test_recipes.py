"Recipes: every field is checked before data is read, and the published ones say what the authors' code does."

import json
import subprocess
import sys
from dataclasses import asdict, fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from see_nb.baselines.registry import LOSSES, build_loss
from see_nb.data.benchmarks import BENCHMARKS
from see_nb.errors import SeeError
from see_nb.method.curriculum import ExpansionSchedule
from see_nb.method.see_loss import SEELoss
from see_nb.training.presets import PRESETS, photo_recipe, preset
from see_nb.training.recipes import Recipe, recipe_from, recipe_of

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.integers(), max_size=2),
    st.sampled_from([*LOSSES, "repeat", "step", "bf16", "bicubic", "frozen", "backbone"]),
)


def one_line(error: SeeError) -> bool:
    return "\n" not in str(error) and len(str(error)) > 20


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from([f.name for f in fields(Recipe)]), ANYTHING, max_size=4))
def test_any_fields_are_taken_or_refused_in_one_line(changes):
    try:
        recipe = Recipe(**changes)
    except SeeError as error:
        assert one_line(error)
        return
    for field in fields(Recipe):
        kinds = {type(field.default)} | ({bool, float} if field.default is None else set())
        assert type(getattr(recipe, field.name)) in kinds, field.name
    assert Recipe(**asdict(recipe)) == recipe and len(recipe.fingerprint) == 12 and recipe.method


NOTHING = "see: nothing would be expanded, .*see=False"
WRONG = [
    ({"samples_per_class": 0}, "samples_per_class: expected greater than or equal to 1"),
    ({"width": 100_000}, "width: expected less than or equal to 512, got 100000"),
    ({"smallest_crop": 1e-9}, "smallest_crop: expected greater than or equal to 0.01"),
    ({"weight": float("nan")}, "weight: expected a finite number, got nan"),
    ({"resize": 1}, "Recipe has no field 'resize'"),
    ({"image_size": 5}, "image_size: expected at least 16"),
    ({"embedding_size": 1}, r"need at least 9 \(K \+ 1\), got 1. Raise it, use a"),
    ({"epochs": 2.5}, "epochs: expected a valid integer"),
    ({"see": 1}, "see: expected a valid boolean"),
    ({"loss": "proxy_ancor"}, "Did you mean 'proxy_anchor'"),
    (
        {"schedule": "stepp"},
        "schedule: expected 'one_cycle', .* got 'stepp'. Did you mean 'step'",
    ),
    ({"colour": 1}, "Recipe has no field 'colour'"),
    ({"batch_size": 63}, "expected a multiple of samples_per_class"),
    ({"frozen": True}, "conv4 starts at random"),
    ({"frozen": 1}, "frozen: expected a valid string"),
    ({"margin": "0.1"}, "margin: expected a valid number"),
    ({"margin": 0.2, "loss": "contrastive"}, "the loss 'contrastive' has none"),
    *(
        ({name: value}, NOTHING)
        for name, value in {"epochs": 1, "fraction": 0, "weight": 0}.items()
    ),
]


@pytest.mark.parametrize("changes, message", WRONG)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(SeeError, match=message):
        Recipe(**changes)


def test_a_run_that_expands_something_is_taken():
    for changes in ({"see": False}, {"curriculum": "constant"}):
        assert Recipe(epochs=1, **changes).epochs == 1
    assert Recipe(see=False, weight=0).weight == 0
    for epochs in range(2, 300, 7):  # as the schedule itself says
        share = max(ExpansionSchedule(epochs)(e) for e in range(epochs))
        assert round(share * 64) > 0 and Recipe(epochs=epochs)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"log_ratio"}))  # SEE has no place there
def test_one_image_of_each_class_is_refused_where_it_is_never_expanded(name):
    see = SEELoss(build_loss(name, 8, 16, 4), n_expansion=4)
    batch = torch.nn.functional.normalize(torch.randn(8, 16)), torch.arange(8)
    made, _ = see.expand_batch(*batch)
    assert Recipe(loss=name, samples_per_class=2)
    if len(made):
        assert Recipe(loss=name, samples_per_class=1)
    else:
        with pytest.raises(SeeError, match=NOTHING):
            Recipe(loss=name, samples_per_class=1)


def test_one_value_has_one_form_and_one_fingerprint():
    same = [Recipe(weight=w, epochs=e) for w, e in ((1, 3), (1.0, np.int64(3)), (np.float32(1), 3))]
    assert len({recipe.fingerprint for recipe in same}) == 1
    assert Recipe(seed=1).fingerprint != Recipe().fingerprint


def test_the_two_settings_have_names():
    published, both = Recipe(), Recipe(encoder_grad=True)
    assert (published.setting, both.setting) == ("as published", "with the encoder")
    assert published.method == "Proxy-Anchor + SEE, as published"
    assert both.method == "Proxy-Anchor + SEE, with the encoder"
    assert Recipe(loss="htl").method == "HTL + SEE, with the encoder"
    assert replace(published, weight=0.3).method == "Proxy-Anchor + SEE, proxies only"
    for changes in ({"see": False}, {"expansion": "repeat"}):
        assert replace(Recipe(), **changes).setting == ""


def test_the_same_training_has_one_fingerprint_however_the_default_is_said():
    for loss, learns in (
        ("proxy_anchor", False),
        ("soft_triple", False),
        ("triplet_semihard", True),
    ):
        unsaid, said = Recipe(loss=loss), Recipe(loss=loss, encoder_grad=learns)
        assert unsaid.encoder_learns == learns and unsaid.fingerprint == said.fingerprint
        assert unsaid.fingerprint != Recipe(loss=loss, encoder_grad=not learns).fingerprint
    assert Recipe(see=False).fingerprint == Recipe(see=False, encoder_grad=True).fingerprint


def test_stored_rows_have_the_fingerprint_of_their_recipe(root):
    for path in sorted((root / "nbs" / "experiments" / "results").glob("*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            if "see" in row:  # raw features have no recipe
                recipe = recipe_of(row)
                assert recipe.fingerprint == row["fingerprint"]
                assert recipe.encoder_learns == row["encoder_grad"]


def test_presets_follow_the_published_code():
    assert len(PRESETS) == 32
    for name, recipe in PRESETS.items():
        assert name == f"{recipe.dataset}-{recipe.backbone}-{recipe.embedding_size}"
        assert recipe.dataset in BENCHMARKS and recipe.batch_size == 180
        large = recipe.dataset in ("sop", "inshop")
        assert recipe.setting == "as published" and recipe.adam_eps == 1e-4
        assert recipe.replacement and recipe.proxy_rate == 1e4
        assert recipe.weight_decay == (1e-4 if large else 1e-2)
        assert recipe.warmup_epochs == (5 if large else 1)
        resnet = recipe.backbone == "resnet50"
        assert recipe.batch_norms == ("eval" if resnet else "train"), name
        assert recipe.head_rate == (100 if large and not resnet else 1)
    assert PRESETS["inshop-deit_small-128"].epochs == 300
    steps = PRESETS["sop-resnet50-512"]
    found = steps.learning_rate, steps.schedule, steps.step_epochs, steps.step_factor, steps.epochs
    assert found == (6e-4, "step", 25, 0.3, 150)
    half = preset("cub200-deit_small-128", batch_size=90)
    assert half.learning_rate == pytest.approx(5e-6)
    with pytest.raises(SeeError, match="Did you mean 'cub200-deit_small-128'"):
        preset("cub200-deit-128")
    with pytest.raises(SeeError, match="Recipe has no field 'los'. Did you mean 'loss'"):
        preset("cub200-deit_small-128", los="triplet")


@pytest.mark.parametrize("n_images", [4, 500, 60_000])
@pytest.mark.parametrize("n_classes", [2, 60, 11_000])
@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_a_recipe_for_own_photos_is_always_one(n_images, n_classes, size):
    recipe = photo_recipe(n_images, n_classes, size)
    assert recipe.dataset == "folder" and recipe.batch_size <= 2 * n_classes


def test_a_stored_recipe_is_whole_or_refused():
    stored = asdict(Recipe())
    assert recipe_from(stored, "here") == Recipe()
    for wrong in (
        None,
        {},
        stored | {"los": 1},
        stored | {"width": 10**6},
        stored | {"epochs": "3"},
    ):
        with pytest.raises(SeeError, match="^here: "):
            recipe_from(wrong, "here")


@pytest.mark.parametrize("seed", [0, 7, 2**53 - 1])
def test_a_row_gives_its_recipe_back_also_from_a_table_with_other_rows(seed):
    recipe = Recipe(seed=seed, see=False, backbone="conv4", width=8, fraction=0.0)
    row = asdict(recipe) | {"recall_at_1": 0.5, "run": "a"}
    table = pd.DataFrame([{"run": "other"}, row])  # so whole numbers become floating point
    assert table.seed.dtype == float
    assert recipe_of(row) == recipe_of(table.iloc[1]) == recipe
    with pytest.raises(SeeError, match="^row other: dataset: expected a valid string, got nan"):
        recipe_of(table.iloc[0])  # NaN everywhere


def test_recipes_and_presets_load_neither_torch_nor_pandas():
    code = "import sys, see_nb.training.presets; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_fields_of_old_recipes_mean_what_they_meant():
    old = Recipe(backbone="resnet50", image_size=64, frozen=True)
    assert old == Recipe(backbone="resnet50", image_size=64, frozen="backbone")
    assert asdict(old)["frozen"] == "backbone"
    assert Recipe(frozen=False) == Recipe()
    stored = asdict(Recipe()) | {"loss": "proxy_anchor_-0.1", "threshold": 0.0, "proxy_grad": True}
    del stored["margin"]
    now = recipe_of(stored)
    assert (now.loss, now.margin, now.method) == (
        "proxy_anchor",
        -0.1,
        "Proxy-Anchor, margin -0.1 + SEE, as published",
    )
    assert len({now.fingerprint, Recipe().fingerprint, Recipe(margin=0.3).fingerprint}) == 3
