"A plan of runs: on a pool, with submitit, and after a stop."

import itertools
from dataclasses import replace

import pytest
from PIL import Image

from see_nb.errors import SeeError
from see_nb.training.recipes import Recipe
from see_nb.training.results import append_row, different_fields, read_rows
from see_nb.training.runs import repeat_row, run_recipes

SMALL = Recipe(embedding_size=12, epochs=2, width=4, train_classes=40, validation=0.0)
PLAN = [replace(SMALL, seed=seed, see=see) for seed in range(2) for see in (False, True)]
SAME = ["fingerprint", "recall_at_1", "map_at_r", "n_expanded", "threads"]


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    "The rows of the plan, made by two processes."
    return run_recipes(PLAN, tmp_path_factory.mktemp("pool") / "rows.jsonl", processes=2)


def rows_of(table):
    return table.sort_values("fingerprint")[SAME].values.tolist()


def test_a_pool_makes_every_row_once_with_one_thread(pooled):
    assert sorted(pooled.fingerprint) == sorted(recipe.fingerprint for recipe in PLAN)
    assert set(pooled.threads) == {1} and pooled.n_expanded.gt(0).eq(pooled.see).all()


def test_rows_are_the_same_however_they_are_made(pooled, tmp_path, monkeypatch):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = run_recipes(PLAN[:2], tmp_path / "here.jsonl", processes=1)
    torch.set_num_threads(threads)
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.chdir(tmp_path)
    local = {"cluster": "local", "folder": tmp_path / "jobs"}
    sent = run_recipes(
        PLAN[:1], tmp_path / "sent.jsonl", launcher="submitit", launcher_options=local
    )
    pool = {row[0]: row for row in rows_of(pooled)}
    for row in [*rows_of(here), *rows_of(sent)]:
        assert row == pool[row[0]]


def test_only_what_is_missing_is_run(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = run_recipes(PLAN[:1], path, processes=1)
    both = run_recipes(PLAN[:2], path, tmp_path / "checkpoints", processes=1)
    assert len(read_rows(path)) == 2 and first.run.iloc[0] in set(both.run)


def test_the_same_recipe_on_other_photos_is_another_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SEE_NB_DATA", str(tmp_path / "home"))
    path, checkpoints = tmp_path / "rows.jsonl", tmp_path / "checkpoints"
    sizes = {"dataset": "folder", "image_size": 16, "batch_size": 4, "train_classes": 0}
    recipe = replace(SMALL, **sizes)
    for folder, label, i in itertools.product(("a", "b"), range(8), range(2)):
        place = tmp_path / folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        colour = (30 * label, 99 * i, 250 * (folder == "b"))
        Image.new("RGB", (32, 32), colour).save(place / f"{i}.png")
    runs = [
        run_recipes([recipe], path, checkpoints, root=tmp_path / folder, processes=1).run.tolist()
        for folder in ("a", "b", "a")
    ]
    assert [len(run) for run in runs] == [1, 1, 1] and runs[0] == runs[2] != runs[1]
    assert len(read_rows(path)) == 2 == len(list(checkpoints.glob("*.pt")))


def test_a_wrong_recipe_ends_the_plan_with_its_own_words(tmp_path):
    wrong = [replace(SMALL, batch_size=4000, seed=seed) for seed in range(2)]
    with pytest.raises(SeeError, match="need 2000 training classes"):
        run_recipes(wrong, tmp_path / "rows.jsonl", processes=2)
    for options in ({"launcher": "slurm"}, {"processes": 0}):
        with pytest.raises(SeeError, match=next(iter(options))):
            run_recipes(PLAN, tmp_path / "rows.jsonl", **options)


def test_a_run_is_made_again_from_its_row_alone_equal_to_the_bit(tmp_path):
    path = tmp_path / "rows.jsonl"
    recipe = replace(SMALL, validation=0.2, encoder_grad=True, fraction=0.8, seed=3)
    run_recipes([recipe], path, processes=1)
    append_row({"experiment": "another kind of row"}, path)  # so the table has gaps
    row = read_rows(path).iloc[0]
    again, different = repeat_row(row)
    assert different == [] and again["run"] != row.run
    assert again["history"] == row.history and again["n_expanded"] == row.n_expanded > 0
    noticed = different_fields(dict(row), again | {"recall_at_1": row.recall_at_1 + 2**-53})
    assert noticed == ["recall_at_1"]
