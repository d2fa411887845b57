"Metrics: what is refused, what is warned of, and agreement in every precision."

import warnings

import pytest
import torch
import torch.nn.functional as F

from see_nb.errors import SeeError
from see_nb.retrieval.metrics import mean_average_precision_at_r, nearest, recall_at_k


@pytest.fixture
def points():
    "Twelve unit vectors of four classes."
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return F.normalize(x, dim=-1), torch.arange(12) % 4


WRONG = {
    "zero": (lambda x, y: recall_at_k(x, y, ks=(0,)), "ks: expected whole numbers of at least 1"),
    "no k": (lambda x, y: recall_at_k(x, y, ks=()), "ks: expected whole numbers of at least 1"),
    "half a k": (lambda x, y: recall_at_k(x, y, ks=(1.5,)), "ks: expected whole numbers"),
    "one k": (lambda x, y: recall_at_k(x, y, ks=1), "ks: expected whole numbers"),
    "whole": (lambda x, y: recall_at_k(x.long(), y), "query: expected floating-point .*int64"),
    "numpy": (
        lambda x, y: recall_at_k(x.numpy(), y),
        "query: expected .* in a tensor, got float64",
    ),
    "one vector": (lambda x, y: recall_at_k(x[0], y[0]), r"query: expected .*\(5,\)"),
    "no vector": (lambda x, y: recall_at_k(x[:0], y[:0]), "query: expected at least one embedding"),
    "labels twice": (lambda x, y: recall_at_k(x, y[:, None]), "query_labels: expected one label"),
    "labels real": (lambda x, y: recall_at_k(x, y.double()), "query_labels: expected whole number"),
    "gallery labels short, MAP": (
        lambda x, y: mean_average_precision_at_r(x, y, x, y[1:]),
        "gallery_labels: expected one label per embedding",
    ),
    "gallery wider": (
        lambda x, y: recall_at_k(x, y, F.pad(x, (0, 1)), y),
        "gallery: expected the query's embedding size 5, got 6",
    ),
    "gallery empty": (lambda x, y: recall_at_k(x, y, x[:0], y[:0]), "gallery: expected at least"),
    "gallery empty, MAP": (
        lambda x, y: mean_average_precision_at_r(x, y, x[:0], y[:0]),
        "gallery: expected at least one embedding, got none",
    ),
    "k of nearest": (lambda x, y: list(nearest(x, k=0)), "k: expected at least 1 neighbour"),
}


@pytest.mark.filterwarnings("ignore:.*queries have no other image")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_refused_in_one_line(points, case):
    call, message = WRONG[case]
    with pytest.raises(SeeError, match=message) as error:
        call(*points)
    assert "\n" not in str(error.value)


def test_every_precision_gives_the_same_ranking(points):
    x, y = points
    expected = recall_at_k(x, y), mean_average_precision_at_r(x, y)
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        assert recall_at_k(x.to(kind), y.int()) == expected[0]
    assert recall_at_k(x.float(), y, x, y)[1] == 1.0  # mixed: each finds itself
    assert mean_average_precision_at_r(x.float(), y.to(torch.uint8)) == pytest.approx(expected[1])


def test_queries_with_nothing_to_find_are_counted_in_a_warning(points):
    x, _ = points
    with pytest.warns(UserWarning, match="12 of 12 queries have no other image of their class"):
        assert recall_at_k(x, torch.arange(12), ks=(1,)) == {1: 0.0}
    with pytest.warns(UserWarning, match="3 of 6 queries"):
        recall_at_k(x[:6], torch.arange(6) // 3, x[6:], torch.zeros(6, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recall_at_k(x, torch.arange(12) // 2)
        mean_average_precision_at_r(x, torch.arange(12) // 2)
