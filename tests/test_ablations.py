"The ablations: numbers of the report against a few lines of plain Python on the committed rows, and one row changed at a time."

import json
import statistics

import numpy as np
import pandas as pd
import pytest

from see_nb.experiments.ablations import (
    ablation_questions,
    ablation_rows,
    ablation_tests,
    against_alone,
    effects,
    grid_rows,
)

NUMBERS = ["points", "se", "p", "seeds"]
DEFAULT = {
    "see": True, "expansion": "see", "n_expansion": 8, "weight": 0.2, "curriculum": "rising", "fraction": 0.4, "encoder_grad": True,
    "proxy_grad": True, "embedding_size": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def lines(root) -> list[dict]:
    "The committed runs."
    text = (root / "nbs" / "experiments" / "results" / "ablations.jsonl").read_text()
    return [
        row for row in map(json.loads, text.splitlines()) if row["experiment"] != "ablation search"
    ]


@pytest.fixture(scope="module")
def tests(lines) -> pd.DataFrame:
    return ablation_tests(ablation_rows(pd.DataFrame(lines)))


def recalls(
    lines: list[dict], dataset: str, classes: int, experiment: str = "ablations", **settings
) -> dict[int, float]:
    "Recall@1 by seed of the runs with these settings."
    settings |= {"dataset": dataset, "n_train_classes": classes, "experiment": experiment}
    found = [r for r in lines if all(r[k] == v for k, v in settings.items())]
    values = {r["seed"]: 100 * r["recall_at_1"] for r in found}
    assert len(values) == len(found) >= 5
    return values


def paired(one: dict[int, float], other: dict[int, float]) -> list[float]:
    return [one[seed] - other[seed] for seed in one]


USUAL = {"glyphs": 144, "omniglot": 144, "cub50": 25}


@pytest.mark.parametrize("dataset", USUAL)
def test_contrasts_and_slopes_are_those_of_the_rows(dataset, lines, tests):
    def runs(**settings):
        return recalls(lines, dataset, USUAL[dataset], **(DEFAULT | settings))

    own = tests[(tests.dataset == dataset) & (tests.metric == "Recall@1")].set_index(
        ["question", "what"]
    )
    contrasts = {
        ("points", "simplex (SEE) less random directions"): ({}, {"expansion": "random"}),
        ("points", "simplex (SEE) less repeated source"): ({}, {"expansion": "repeat"}),
        ("gradient", "both (default) less proxies (authors)"): ({}, {"encoder_grad": False}),
        ("gradient", "both (default) less encoder"): ({}, {"proxy_grad": False}),
        ("curriculum", "constant less rising"): ({"curriculum": "constant"}, {}),
    }
    for key, (one, other) in contrasts.items():
        values = paired(runs(**one), runs(**other))
        assert own.loc[key, "points"] == pytest.approx(statistics.mean(values)) and own.loc[
            key, "seeds"
        ] == len(values)
        assert own.loc[key, "se"] == pytest.approx(statistics.stdev(values) / len(values) ** 0.5)
    synthetics = {k: runs(n_expansion=k) for k in (1, 2, 4, 8, 16, 32)}
    slopes = [
        np.polyfit(np.log2(list(synthetics)), [of[seed] for of in synthetics.values()], 1)[0]
        for seed in synthetics[1]
    ]
    assert own.loc[("synthetics", "a doubling of K, SEE"), "points"] == pytest.approx(
        statistics.mean(slopes)
    )


@pytest.mark.parametrize("dataset", USUAL)
def test_fresh_seeds_are_compared_with_each_other_only(dataset, lines, tests):
    def runs(**settings):
        return recalls(
            lines, dataset, USUAL[dataset], "ablations again", embedding_size=64, **settings
        )

    own = tests[
        (tests.question == "again") & (tests.dataset == dataset) & (tests.metric == "Recall@1")
    ].set_index("what")
    suggested = {"see": True, "curriculum": "constant", "n_expansion": 32}
    see, repeats, alone = (
        runs(**suggested, expansion="see"),
        runs(**suggested, expansion="repeat"),
        runs(see=False),
    )
    assert set(see) == set(range(5, 15))
    for what, values in (
        ("suggested, simplex (SEE) less alone", paired(see, alone)),
        ("suggested, simplex (SEE) less suggested, repeated source", paired(see, repeats)),
    ):
        assert own.points[what] == pytest.approx(statistics.mean(values))
        assert own.se[what] == pytest.approx(statistics.stdev(values) / 10**0.5)


def test_a_cell_of_the_grid_is_that_of_the_rows(lines):
    rows = ablation_rows(pd.DataFrame(lines))
    for expansion in ("see", "repeat"):
        grid = grid_rows(rows, expansion)
        table = effects(grid.assign(length=grid.D), "length").set_index(["dataset", "D", "classes"])
        assert len(table) == 3 * 4 + 3 * 4 + 3 * 3
        for dataset, d, classes in (
            ("omniglot", 16, 964),
            ("glyphs", 64, 50),
            ("cub50", 256, 15),
            ("omniglot", 16, 144),
        ):
            where = {
                "embedding_size": d,
                "see": True,
                **(
                    {
                        k: DEFAULT[k]
                        for k in (
                            "n_expansion",
                            "weight",
                            "curriculum",
                            "fraction",
                            "encoder_grad",
                            "proxy_grad",
                        )
                    }
                ),
            }
            own = recalls(lines, dataset, classes, expansion=expansion, **where)
            alone = recalls(lines, dataset, classes, embedding_size=d, see=False)
            assert table.loc[(dataset, d, classes), "points"] == pytest.approx(
                statistics.mean(paired(own, alone))
            )


def test_a_row_changes_its_own_tests_and_no_others(lines, tests):
    number = next(
        i for i, r in enumerate(lines) if r["dataset"] == "omniglot" and r["seed"] == 2 and r["n_train_classes"] == 144 and all(r[k] == v for k, v in (DEFAULT | {"expansion": "random"}).items())
    )  # fmt: skip
    row = lines[number] | {"recall_at_1": lines[number]["recall_at_1"] + 0.01}
    after = ablation_tests(
        ablation_rows(pd.DataFrame([*lines[:number], row, *lines[number + 1 :]]))
    )
    different = tests[(after[NUMBERS] - tests[NUMBERS]).abs().gt(1e-12).any(axis=1)]
    assert different[["dataset", "what", "metric"]].values.tolist() == [
        ["omniglot", "simplex (SEE) less random directions", "Recall@1"]
    ]


def test_a_run_alone_that_is_missing_takes_its_seed_out_and_nothing_else(lines, tests):
    number = next(
        i for i, r in enumerate(lines) if r["dataset"] == "glyphs" and r["seed"] == 0 and r["n_train_classes"] == 144 and r["embedding_size"] == 64 and not r["see"]
    )  # fmt: skip
    after = ablation_tests(ablation_rows(pd.DataFrame([*lines[:number], *lines[number + 1 :]])))
    key = ["question", "dataset", "what", "metric"]
    both = tests.merge(after, on=key, suffixes=("", "_after"))
    assert len(both) == len(tests) == len(after)
    fewer = both[both.seeds != both.seeds_after]
    assert set(fewer.dataset) == {"glyphs"} and (fewer.seeds_after == fewer.seeds - 1).all()
    assert set(fewer.question) == set(tests.question) - {"again"}


def test_every_question_has_all_its_runs(lines, tests):
    for name, question in ablation_questions(ablation_rows(pd.DataFrame(lines))).items():
        for runs in question.runs.values():
            assert set(runs.dataset) == set(USUAL)
            for _, group in runs.groupby("dataset"):
                wide = against_alone(group).pivot(
                    index="seed", columns=question.setting, values="points"
                )
                assert wide.shape == (
                    10 if name == "again" else 5,
                    len(question.values),
                ) and wide.notna().all(axis=None)
    assert tests.seeds.eq(tests.question.map({"again": 10}).fillna(5)).all()
    assert tests.corrected.ge(tests.p).all()
