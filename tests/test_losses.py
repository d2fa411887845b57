"SEE around every loss of the library, and every augmentation inside it."

import contextlib
import copy
import inspect
import math
import re
import threading
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import in_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.utils.distributed import (
    DistributedLossWrapper,
    DistributedMinerWrapper,
)
from torch import nn

from see_nb.baselines.registry import POINTS, build_expansion
from see_nb.errors import SeeError
from see_nb.method.adapters import (
    ADAPTERS,
    adapter_of,
    find_proxies,
    place_of,
    second_term,
    shared_copy,
    unwrapped,
)
from see_nb.method.closed_form import expected_proxy_anchor
from see_nb.method.curriculum import ExpansionSchedule
from see_nb.method.running_means import RunningMeans
from see_nb.method.see_loss import SEELoss
from see_nb.method.synthetics import Batch

C, D = 6, 12


def known(place, names, *sizes, **options):
    "Losses of the library by name, with their place and what builds them."
    kinds = {f"{name}Loss": getattr(losses, f"{name}Loss") for name in names.split()}
    return {name: (place, partial(kind, *sizes, **options)) for name, kind in kinds.items()}


SERVED = {
    **known("own", "ArcFace CosFace LargeMarginSoftmax NormalizedSoftmax SphereFace", C, D),
    **known("own", "ProxyAnchor ProxyNCA", C, D),
    **known("own", "P2SGrad", D, C),
    **known("own", "SoftTriple", C, D, centers_per_class=3),
    **known("own", "SubCenterArcFace", num_classes=C, embedding_size=D),
    **known("references", "Angular Circle Contrastive GeneralizedLiftedStructure NCA NTXent"),
    **known("references", "IntraPairVariance MultiSimilarity SignalToNoiseRatioContrastive"),
    **known("references", "SupCon TupletMargin"),
    **known("references", "Margin", learn_beta=True, num_classes=C),
    **known("references", "TripletMargin", margin=0.3),
    **known("pairs", "Histogram LiftedStructure NPairs ThresholdConsistentMargin"),
    **known("batch", "FastAP PNP"),
    **known("batch", "RankedList", margin=0.4, Tn=1.0),
}
PLACE = {name: place for name, (place, _) in SERVED.items()}
OWN = {name for name, place in PLACE.items() if place == "own"}
LOSSES = {name: make for name, (_, make) in SERVED.items()}
REFUSED = {
    "DynamicSoftMarginLoss": losses.DynamicSoftMarginLoss,
    "InstanceLoss": losses.InstanceLoss,
    "ManifoldLoss": lambda: losses.ManifoldLoss(D, K=3),
    "SmoothAPLoss": losses.SmoothAPLoss,
    "VICRegLoss": losses.VICRegLoss,
    "MultipleLosses": lambda: losses.MultipleLosses([losses.ContrastiveLoss()]),
    "SelfSupervisedLoss": lambda: losses.SelfSupervisedLoss(losses.NTXentLoss()),
}
BASES = {"BaseLossWrapper", "BaseMetricLossFunction", "CrossBatchMemory", "GenericPairLoss"}
every_loss = pytest.mark.parametrize("name", LOSSES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def toy(name="ProxyAnchorLoss", seed=0, each=4, spread=0.7):
    "A loss, and a batch of scattered classes."
    torch.manual_seed(seed)
    loss, labels = LOSSES[name](), torch.arange(C).repeat_interleave(each)
    directions = F.normalize(torch.randn(C, D), dim=-1)
    return (
        loss,
        (directions[labels] + spread * torch.randn(len(labels), D) / D**0.5).requires_grad_(),
        labels,
    )


def gradients(value, x, loss):
    return torch.autograd.grad(value, [x, *loss.parameters()], allow_unused=True)


def test_every_loss_of_the_library_is_served_or_refused():
    there = {n for n, c in vars(losses).items() if inspect.isclass(c) and issubclass(c, nn.Module)}
    assert there - BASES == {*LOSSES, *REFUSED}


@every_loss
def test_the_table_says_the_place_and_wrapping_calls_nothing(name):
    loss, _, _ = toy(name)
    before, state = copy.deepcopy(loss.state_dict()), torch.get_rng_state()
    loss.register_forward_pre_hook(pytest.fail)
    see = SEELoss(loss)
    assert see.loss is loss and see.place == PLACE[name]
    assert all(torch.equal(before[k], v) for k, v in loss.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert (find_proxies(loss) is None) == (name not in OWN)


# What the table says, found out by trying: two anchors, each a little nearer to the other class, two
# references of each class, and a row that belongs to no pair.


def rows_to_try():
    rows = torch.zeros(7, D)
    rows[0, :3], rows[1, :2] = torch.tensor([0.6, 0.61, 0.52]), torch.tensor([0.31, 0.3])
    rows[1, 3], rows[2:4, 0], rows[4:6, 1] = 0.9, 1, 1
    rows[6] = rows[0].flip(0)
    return F.normalize(rows, dim=-1), torch.tensor([0, 1, 0, 0, 1, 1, 0])


NUMBERS = tuple(map(torch.tensor, ([0, 0, 1, 1], [2, 3, 4, 5], [0, 0, 1, 1], [4, 5, 2, 3])))
TRIALS = {  # place -> the call, another order of the rows, what must hold of their slopes
    "references": (
        lambda loss, x, y: loss(x[:2], y[:2], None, x[2:], y[2:]),
        [0, 1, 4, 5, 2, 3],  # a set of references has no order
        lambda slopes: slopes[2:].sum() > 0,
    ),
    "pairs": (
        lambda loss, x, y: loss(x, y, NUMBERS),
        [*range(7)],
        lambda slopes: slopes[2:6].sum() > 0 and slopes[6] == 0,
    ),
    "batch": (
        lambda loss, x, y: loss(x, y),
        [3, 0, 6, 4, 1, 5, 2],
        lambda slopes: (slopes > 0).sum() > 1,
    ),
}


def works(loss, call, order, fits) -> bool:
    x, y = rows_to_try()

    def value_and_slopes(order):
        rows = x[order].requires_grad_()
        value = call(loss, rows, y[order])
        value.backward()
        return value.item(), rows.grad.norm(dim=-1)

    (value, slopes), (other, _) = value_and_slopes(sorted(order)), value_and_slopes(order)
    return bool(fits(slopes)) and abs(value - other) <= 1e-4 * abs(value)


def place_by_trying(loss) -> str:
    "The first of the four that works, or nothing."
    names = ("proxies", "W", "fc", "weight")
    proxies = any(isinstance(getattr(loss, name, None), nn.Parameter) for name in names)
    own = {"own": (lambda loss, x, y: loss(x[:2], y[:2]), [*range(7)], torch.any)}
    for place, trial in {**(own if proxies else {}), **TRIALS}.items():
        with contextlib.suppress(Exception):  # whatever a loss raises; some at their second step
            copied = copy.deepcopy(loss)
            if works(copied, *trial) and works(copied, *trial):
                return place
    return ""


@pytest.mark.parametrize("name", [*LOSSES, *(n for n in REFUSED if not n.endswith("sLosses"))])
def test_the_table_agrees_with_trying(name):
    torch.manual_seed(0)
    loss = {**LOSSES, **REFUSED}[name]()
    if name not in ("MultipleLosses", "SelfSupervisedLoss"):
        assert place_by_trying(loss) == adapter_of(loss).place


@pytest.mark.parametrize(
    "loss",
    [
        losses.TripletMarginLoss(swap=True),
        losses.TripletMarginLoss(swap=True, triplets_per_anchor=3),
        *(
            kind(reducer=reducers.PerAnchorReducer())
            for kind in (losses.ContrastiveLoss, losses.NTXentLoss, losses.IntraPairVarianceLoss)
        ),
    ],
)
def test_properties_that_change_the_place_agree_with_trying(loss):
    assert place_of(loss) == place_by_trying(loss) == "pairs"


@every_loss
def test_without_weight_it_is_the_loss_alone(name):
    loss, x, labels = toy(name)
    plain = loss(x, labels)
    expected = gradients(plain, x, loss)
    for options in ({"weight": 0}, {"fraction": 0.0}):
        inner, _, _ = toy(name)  # a new one: P2SGradLoss rounds its proxies at each call
        same = SEELoss(inner, **options)(x, labels)
        assert torch.equal(plain, same)
        assert all(torch.equal(a, b) for a, b in zip(expected, gradients(same, x, inner)))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_and_reach_the_encoder(name, dtype):
    loss, x, labels = toy(name)
    see = SEELoss(loss, weight=1.0, encoder_grad=True, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = see(x.to(dtype), labels)
    assert value.isfinite() and value.dtype == torch.float32
    both, plain = gradients(value, x, loss), gradients(loss(x, labels), x, loss)
    assert all(g.isfinite().all() for g in both)
    assert all(p.dtype == torch.float32 for p in loss.parameters())
    if dtype == torch.float32:
        assert (both[0] - plain[0]).abs().max() > 1e-4 * plain[0].abs().max()


@every_loss
def test_the_encoder_learns_by_default_only_where_nothing_else_would(name):
    loss, x, labels = toy(name)
    see = SEELoss(loss, weight=1.0, generator=seeded())
    assert see.encoder_grad == (name not in OWN)
    plain, both = gradients(loss(x, labels), x, loss), gradients(see(x, labels), x, loss)
    if name in OWN:
        assert torch.equal(both[0], plain[0]) or name == "P2SGradLoss"  # it rounds its proxies
        torch.testing.assert_close(both[0], plain[0], rtol=1e-5, atol=1e-8)
        assert not torch.allclose(both[1], plain[1])
    else:
        assert not torch.allclose(both[0], plain[0], rtol=1e-5, atol=1e-8)
    assert SEELoss(loss.requires_grad_(False)).encoder_grad  # the proxies cannot learn


@every_loss
def test_learning_happens(name):
    "Free embeddings and proxies: the loss falls, and neighbours become classmates."
    loss, x, labels = toy(name, spread=2.0)
    free = nn.Parameter(x.detach().clone())
    see = SEELoss(loss, 4, encoder_grad=True, generator=seeded())
    optimizer, history = torch.optim.Adam([free, *see.parameters()], lr=0.05), []

    def recall():
        similarity = (F.normalize(free, dim=-1) @ F.normalize(free, dim=-1).T).fill_diagonal_(-2)
        return (labels[similarity.argmax(1)] == labels).float().mean().item()

    first = recall()
    for _ in range(100):
        value = see(free, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(value.item())
    assert history[-1] < history[0] and first < 0.5 and recall() > 0.7, (history, first, recall())


def test_lonely_embeddings_are_left_alone():
    loss, x, _ = toy("TripletMarginLoss")
    labels = torch.cat([torch.arange(20), torch.tensor([20, 20, 21, 21])])
    synthetics, targets = SEELoss(loss, 4, fraction=1.0).expand_batch(x, labels)
    assert sorted(targets.tolist()) == [20] * 8 + [21] * 8 and len(synthetics) == 16
    alone = torch.arange(24)
    assert torch.equal(SEELoss(loss)(x, alone), loss(x, alone))


@every_loss
def test_a_state_goes_on_where_it_was_taken(name):
    (loss, x, labels), values = toy(name), []
    options = {"schedule": ExpansionSchedule(9), "generator": seeded()}
    one, two = (
        SEELoss(inner, 4, centers=RunningMeans(C, D, 0.5), **options)
        for inner in (loss, LOSSES[name]())
    )
    one.set_epoch(5)
    one(x, labels)
    two.load_state_dict(one.state_dict())
    for module in (one, two):
        module.generator.manual_seed(1)
        values.append(module(x, labels))
    assert torch.equal(*values) and torch.equal(one.centers.means, two.centers.means)


def test_a_miner_reaches_both_terms_and_its_pairs_alone_are_refused():
    loss, x, labels = toy("TripletMarginLoss")
    miner = miners.TripletMarginMiner(margin=0.3, type_of_triplets="all")
    mined = miner(x, labels)
    with pytest.raises(SeeError, match=r"indices_tuple: .* SEELoss\(loss, miner=miner\)"):
        SEELoss(loss)(x, labels, mined)
    assert torch.equal(SEELoss(loss, weight=0)(x, labels, mined), loss(x, labels, mined))
    see = SEELoss(loss, miner=miner, generator=seeded())
    value = see(x, labels)
    see.generator.manual_seed(0)
    synthetics, targets = see.expand_batch(x, labels)
    z = F.normalize(x, dim=-1)
    second = loss(z, labels, miner(z, labels, synthetics, targets), synthetics, targets)
    torch.testing.assert_close(value, loss(x, labels, mined) + 0.2 * second)
    assert torch.equal(SEELoss(loss, weight=0, miner=miner)(x, labels), loss(x, labels, mined))


@pytest.mark.parametrize(
    "name", ["NPairsLoss", "HistogramLoss", "LiftedStructureLoss", "FastAPLoss", "ContrastiveLoss"]
)
@pytest.mark.parametrize("miner", [miners.MultiSimilarityMiner(0.5), miners.BatchHardMiner()])
def test_miners_work_with_every_kind(name, miner):
    loss, x, labels = toy(name)
    value = SEELoss(loss, miner=miner)(x, labels)
    assert value.isfinite() and gradients(value, x, loss)[0].isfinite().all()


@pytest.mark.parametrize(
    "reducer", [reducers.MeanReducer(), reducers.ThresholdReducer(low=0.01), reducers.PerAnchorReducer(), reducers.ClassWeightedReducer(torch.arange(1.0, 7))]
)  # fmt: skip
@pytest.mark.parametrize("kind", [losses.ContrastiveLoss, losses.SupConLoss, losses.NTXentLoss])
def test_reducers(reducer, kind):
    _, x, labels = toy()
    loss = kind(reducer=reducer)
    value = SEELoss(loss)(x, labels)
    assert value.isfinite() and value != loss(x, labels)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(
    "distance", [distances.LpDistance, distances.SNRDistance, distances.DotProductSimilarity]
)
def test_the_second_term_does_not_know_how_long_embeddings_are(distance, normalised):
    _, x, labels = toy()
    loss = losses.TripletMarginLoss(margin=0.5, distance=distance(normalize_embeddings=normalised))
    terms = [
        SEELoss(loss, generator=seeded())(scale * x, labels) - loss(scale * x, labels)
        for scale in (1, 3)
    ]
    torch.testing.assert_close(*terms, rtol=1e-3, atol=1e-5)


def test_images_that_are_only_remembered_are_not_expanded():
    _, x, labels = toy()
    kept, compared = torch.arange(24) % 4 > 1, torch.arange(24) % 4 < 2
    alone, within = (losses.CrossBatchMemory(losses.ContrastiveLoss(), D, 64) for _ in range(2))
    see, inner = SEELoss(within, weight=1.0, generator=seeded()), within.loss
    value, first = see(x, labels, enqueue_mask=kept), alone(x, labels, enqueue_mask=kept)
    see.generator.manual_seed(0)
    batch = x[compared], labels[compared]
    second = inner(F.normalize(batch[0], dim=-1), batch[1], None, *see.expand_batch(*batch))
    torch.testing.assert_close(value, first + second)
    slope = torch.autograd.grad(value, x)[0]
    assert slope[compared].any() and not slope[kept].any()


def test_the_memory_holds_images_only_and_its_miner_chooses():
    _, x, labels = toy()
    miner, inner = miners.BatchHardMiner(), losses.TripletMarginLoss(margin=0.5)
    options = {"memory_size": 60, "miner": miner}
    plain, inside = (losses.CrossBatchMemory(inner, D, **options) for _ in range(2))
    see = SEELoss(inside, generator=seeded())
    for step in range(4):  # around the end of the memory
        y = F.normalize(x + 0.1 * step, dim=-1)
        first, value = plain(y, labels), see(y, labels)
        see.generator.manual_seed(step)
    assert torch.equal(plain.embedding_memory, inside.embedding_memory)
    assert plain.queue_idx == inside.queue_idx
    see.generator.manual_seed(2)
    synthetics, targets = see.expand_batch(y, labels)
    second = inner(y, labels, miner(y, labels, synthetics, targets), synthetics, targets)
    torch.testing.assert_close(value - first, 0.2 * second, rtol=1e-4, atol=1e-6)
    assert second.isfinite() and value.isfinite()
    with pytest.raises(Exception, match="not supported for SEELoss"):
        losses.CrossBatchMemory(SEELoss(inner), D)


class Layer(nn.Module):
    "Keeps its proxies where nobody looks."

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, C, bias=False)

    def forward(self, embeddings, labels):
        return F.cross_entropy(
            5 * F.normalize(embeddings, dim=-1) @ F.normalize(self.layer.weight, dim=-1).T, labels
        )


def test_a_module_of_ones_own_says_where_its_centres_are():
    _, x, labels = toy()
    own = Layer()
    rows = own.layer.weight.detach().clone()
    by_function = lambda labels: own.layer.weight[labels]
    ways = [own.layer.weight, rows, by_function, nn.Embedding(C, D, _weight=rows)]
    values = [SEELoss(own, place="own", centers=w, generator=seeded())(x, labels) for w in ways]
    assert all(torch.equal(v, values[0]) for v in values) and values[0] != own(x, labels)
    kept = list(SEELoss(own, place="own", centers=ways[1]).state_dict())
    assert kept == ["centers", "_extra_state", "loss.layer.weight"]
    wrong = {"pair": "expected one of own, ref", "references": "with 5 arguments"}
    for place, words in wrong.items():
        with pytest.raises(SeeError, match=f"place: .*{words}"):
            SEELoss(own, place=place, centers=rows)


class Memory(nn.Module):
    "Remembers in a buffer, in a list, in a tensor that is no buffer, and in a number."

    def __init__(self):
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(C, D))
        self.register_buffer("queue", torch.zeros(64, D))
        self.next, self.sizes, self.last = 0, [], torch.zeros(())

    def forward(self, x, y):
        z = F.normalize(x, dim=-1)
        self.queue[(torch.arange(len(z)) + self.next) % 64] = z.detach()
        self.next += len(z)
        self.sizes.append(len(z))
        self.last.copy_(z.detach().mean())
        self.logits = 9 * z @ F.normalize(self.proxies, dim=-1).T  # with its graph
        return F.cross_entropy(self.logits, y) + 0.1 * (z @ self.queue.T).mean(), self.logits


def test_a_memory_remembers_images_only_and_the_rest_of_the_output_is_passed_on():
    _, x, labels = toy()
    own, alone = Memory(), Memory()
    alone.load_state_dict(own.state_dict())
    see = SEELoss(own, place="own", generator=seeded())
    for step in range(3):
        value, logits = see(x + step, labels)
        first, expected = alone(x + step, labels)
        assert torch.equal(logits, expected) and value > first
    assert torch.equal(own.queue, alone.queue) and torch.equal(own.last, alone.last)
    assert (own.next, own.sizes) == (alone.next, alone.sizes) == (72, [24, 24, 24])
    value.backward()
    assert own.proxies.grad.isfinite().all() and own.proxies.grad.any()


class Lock(Memory):
    "A memory that holds what cannot be copied."

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_what_cannot_be_copied_is_said_in_one_sentence():
    _, x, labels = toy()
    own = Lock()
    with pytest.raises(SeeError, match="Lock: it cannot be copied .*__deepcopy__") as error:
        SEELoss(own, place="own")(x, labels)
    assert "\n" not in str(error.value)
    assert SEELoss(own, weight=0, place="own")(x, labels)[0].isfinite()


def test_a_copy_shares_parameters_and_results_but_no_memory_and_no_hook():
    own, called = Memory(), []
    own(*toy()[1:])
    own.register_forward_hook(lambda *_: called.append(1))
    apart = shared_copy(own)
    assert apart.proxies is own.proxies and apart.logits is own.logits
    assert apart.queue.data_ptr() != own.queue.data_ptr()
    apart(*toy()[1:])
    assert own.sizes == [24] and called == []


def test_what_is_no_scalar_is_refused():
    _, x, labels = toy()
    losses_of_many = {
        None: losses.ContrastiveLoss(reducer=reducers.DoNothingReducer()),
        "batch": nn.CrossEntropyLoss(reduction="none"),
    }
    for place, loss in losses_of_many.items():
        with pytest.raises(SeeError, match="expected a scalar, or a tuple that begins with one"):
            SEELoss(loss, place=place)(x, labels)


def test_a_loss_kept_inside_a_module_is_not_taken_for_the_wrapped_one():
    "A module of one's own may keep a library's loss in `.loss` without being a wrapper."

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss, self.proxies = nn.CrossEntropyLoss(), nn.Parameter(torch.randn(C, D))

        def forward(self, x, y):
            return self.loss(F.normalize(x, dim=-1) @ F.normalize(self.proxies, dim=-1).T, y)

    _, x, labels = toy()
    own = Scaled()
    assert unwrapped(own) is own
    see = SEELoss(own, place="own", generator=seeded())
    value = see(x, labels)
    see.generator.manual_seed(0)
    expected = own(x, labels) + 0.2 * own(*see.expand_batch(x, labels))
    torch.testing.assert_close(value, expected)
    with pytest.raises(SeeError, match="it is a SEELoss already"):
        SEELoss(see)


def test_a_second_stream_is_expanded_too_or_refused():
    loss, x, labels = toy("NTXentLoss")
    other = (x + 0.3 * torch.randn_like(x)).detach().requires_grad_()
    see = SEELoss(loss, fraction=1.0, generator=seeded())
    value = see(x, labels, ref_emb=other, ref_labels=labels)
    see.generator.manual_seed(0)
    pool = torch.cat([x, other]), torch.cat([labels, labels])
    rows, targets = see.expand_batch(*pool)
    assert len(rows) == 8 * 2 * len(x)
    first = loss(x, labels, None, other, labels)
    second = loss(F.normalize(x, dim=-1), labels, None, rows, targets)
    torch.testing.assert_close(value, first + 0.2 * second)
    assert torch.autograd.grad(value, other)[0].any()
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), D, 64)
    for refusing in (losses.ProxyAnchorLoss(C, D), losses.HistogramLoss(), memory):
        with pytest.raises(SeeError, match=r"no place for a second stream. Join them"):
            SEELoss(refusing)(x, labels, ref_emb=other, ref_labels=labels)


def ones(n=C, dim=D):
    return torch.ones(n, dim)


PROXIES, PAIR = "ProxyAnchorLoss", "ContrastiveLoss"
WRONG = [  # loss, options, what the call gets after embeddings and labels, words
    *((name, {}, (), ADAPTERS[type(make())].refused[:30]) for name, make in REFUSED.items()),
    (PROXIES, {"n_expansion": 2.5}, (), "n_expansion: expected an integer >= 1, got 2.5"),
    (PROXIES, {"weight": math.inf}, (), "weight: expected a finite number from 0 on, got inf"),
    (PROXIES, {"weight": "a"}, (), "weight: expected a finite number from 0 on, got 'a'"),
    (PROXIES, {"fraction": math.nan}, (), "fraction: expected a share .* got nan"),
    (PROXIES, {"schedule": abs}, (), "schedule: expected a Schedule, .* got builtin"),
    (PAIR, {"expansion": lambda s, *_, **o: s[:, None, :5]}, (), "expansion: .* got .*10, 1, 5"),
    (PROXIES, {"centers": ones(dim=10)}, (), "the size of the loss's centers, got .*24, 12"),
    (PROXIES, {"centers": ones() * math.nan}, (), "centers: expected finite numbers"),
    (PAIR, {"centers": ones()[0]}, (), "centers: .* floating point .*float32 .12,."),
    (PAIR, {"centers": ones(2)}, (), "the loss has 2 centers.*got '0 to 5'"),
    (PAIR, {"centers": nn.Embedding(2, D)}, (), "the loss has 2 centers.*got '0 to 5'"),
    (PAIR, {"centers": RunningMeans}, (), "centers: .*RunningMeans is a class"),
    (PAIR, {"centers": lambda: ones()}, (), "centers: .* takes 0|too many positional"),
    (PROXIES, {"miner": miners.MultiSimilarityMiner}, (), "miner: .*MultiSimilarityMiner is a"),
    (PAIR, {"miner": lambda x, y: None}, (), "miner: .*too many positional arguments"),
    (PAIR, {"expansion": lambda s, w, k: s}, (), "expansion: .*generator=None.* argument 'gen"),
    (PAIR, {"expansion": lambda *_, **o: None}, (), "expansion: .* one row of K .*NoneType"),
    (PAIR, {"centers": print}, (), "a row for each label, .24, 12., got NoneType"),
    (PAIR, {"centers": lambda y: ones(len(y), 5)}, (), "a row for each label"),
    (PAIR, {}, (None, ones(24)), "ref_labels: expected one integer for each row of ref"),
    (PAIR, {}, (None, ones(24, 5), torch.arange(24)), "ref_emb: .* size of the embed"),
    (PAIR, {}, (None, None, torch.arange(24)), "ref_emb: expected floating point"),
]


@pytest.mark.parametrize("name, options, more, words", WRONG)
def test_wrong_use_is_told_in_one_line(name, options, more, words):
    _, x, labels = toy()
    torch.manual_seed(0)
    with pytest.raises(SeeError) as error:
        SEELoss({**LOSSES, **REFUSED}[name](), **options)(x, labels, *more)
    assert "\n" not in str(error.value)
    assert words in str(error.value) or re.search(words, str(error.value)), str(error.value)


@pytest.mark.parametrize("name", ["ProxyAnchorLoss", "ArcFaceLoss", "ContrastiveLoss"])
def test_labels_may_be_integers_of_any_size_and_nothing_else(name):
    loss, x, labels = toy(name)
    expected = SEELoss(loss, generator=seeded())(x, labels)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(SEELoss(loss, generator=seeded())(x, labels.to(dtype)), expected)
    for same in (labels.tolist(), labels.numpy(), tuple(labels.numpy().astype("uint16"))):
        assert torch.equal(SEELoss(loss, generator=seeded())(x, same), expected)
    for wrong in (labels.bool(), labels.float(), ["a"] * 24, labels[:3], labels[:, None], None):
        with pytest.raises(SeeError, match="labels: expected one integer for each row"):
            SEELoss(loss)(x, wrong)
    for wrong in (x.detach().numpy(), x.detach().long(), x.detach()[0]):
        with pytest.raises(SeeError, match="embeddings: expected floating point"):
            SEELoss(loss)(wrong, labels)


def test_methods_of_the_wrapped_loss_are_reachable():
    loss, x, labels = toy("SubCenterArcFaceLoss")
    see = SEELoss(DistributedLossWrapper(loss))
    assert torch.equal(see.get_logits(x), loss.get_logits(x))
    found = (torch.as_tensor(part) for part in see.get_outliers(x, labels))
    expected = (torch.as_tensor(part) for part in loss.get_outliers(x, labels))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_attributes_of_the_wrapped_loss_are_set_there():
    loss, x, labels = toy()
    see = SEELoss(loss, generator=seeded())
    see.margin, see.note = 0.5, "SEE's own"
    assert loss.margin == see.margin == 0.5 and not hasattr(loss, "note")
    see.proxies = nn.Parameter(2 * ones())
    assert loss.proxies is see.proxies and len(list(see.parameters())) == 1


def test_a_loss_may_have_attributes_that_are_named_like_those_of_see():
    class Centers(nn.Module):
        see_place, weight, miner, epoch = "own", "its own", "its own", "its own"

        def __init__(self):
            super().__init__()
            self.centers = nn.Parameter(ones())

        def forward(self, x, y):
            return (x - self.centers[y]).square().sum(1).mean()

    own, (_, x, labels) = Centers(), toy()
    for centers in (own.centers, own.centers.detach(), nn.Embedding.from_pretrained(ones())):
        see = SEELoss(own, centers=centers, generator=seeded())
        see.weight = 0.5
        value = see(x, labels)
        see.generator.manual_seed(0)
        assert torch.equal(value, own(x, labels) + 0.5 * own(*see.expand_batch(x, labels)))
    assert own.weight == own.miner == own.epoch == "its own"


@pytest.mark.parametrize(
    "see_it", [lambda loss, **o: SEELoss(loss, **o).eval(), partial(SEELoss, weight=0)]
)
def test_what_is_the_loss_alone_takes_classes_that_have_no_centre(see_it):
    loss, x, labels = toy(PAIR)
    for centers in (RunningMeans(C, D), ones()):
        assert torch.equal(see_it(loss, centers=centers)(x, labels + 50), loss(x, labels + 50))
        with pytest.raises(SeeError, match="the loss has 6 centers"):
            SEELoss(loss, centers=centers)(x, labels + 50)


def test_synthetics_to_look_at_are_those_of_training():
    loss, x, labels = toy()
    see = SEELoss(loss, np.int64(4), generator=seeded())
    expected, _ = see.expand_batch(x, labels)
    for same in (labels.byte(), labels.tolist(), labels.numpy()):
        see.generator.manual_seed(0)
        assert torch.equal(see.expand_batch(x, same)[0], expected)
    with pytest.raises(SeeError, match="classes 0 to 5"):
        see.expand_batch(x, labels + 1)
    with pytest.raises(SeeError, match="call set_epoch"):
        SEELoss.as_published(loss, 5).expand_batch(x, labels)
    with pytest.raises(SeeError, match="ClosedForm makes no synthetics"):
        SEELoss(loss, expansion="closed_form").expand_batch(x, labels)


def test_running_means_outlive_a_batch_that_is_no_number():
    loss, x, labels = toy(PAIR)
    sees = [SEELoss(loss, 4, centers=RunningMeans(C, D)) for _ in range(2)]
    broken = x.detach().clone()
    broken[3] = math.nan
    known = torch.arange(len(x)) != 3
    sees[0](broken, labels), sees[1](x[known], labels[known])
    assert all(torch.equal(*pair) for pair in zip(*(see.centers.buffers() for see in sees)))
    assert sees[0](x, labels).isfinite()


def test_a_loss_that_was_changed_or_compiled_is_called_as_it_is():
    loss, x, labels = toy()
    value = SEELoss(torch.compile(loss, backend="eager"), generator=seeded())(x, labels)
    torch.testing.assert_close(value, SEELoss(loss, generator=seeded())(x, labels))
    loss.forward = lambda *batch: 2 * losses.ProxyAnchorLoss.forward(loss, *batch)
    torch.testing.assert_close(SEELoss(loss, generator=seeded())(x, labels), 2 * value)
    traced = torch.jit.trace(nn.CrossEntropyLoss(), (torch.randn(24, D), labels))
    assert SEELoss(traced, place="own", centers=ones())(x, labels).isfinite()


def test_synthetics_that_are_negatives_only():
    _, x, labels = toy()
    z = F.normalize(x.detach(), dim=-1)
    rows = F.normalize(torch.randn(8, D), dim=-1)
    names = torch.arange(8) % C
    loss = losses.ContrastiveLoss(pos_margin=0, neg_margin=3)
    same = (labels[:, None] == labels) & ~torch.eye(len(z), dtype=torch.bool)
    far = (3 - torch.cdist(z, rows)[labels[:, None] != names]).mean()
    expected = torch.cdist(z, z)[same].mean() + far
    for place in ("references", "pairs"):
        value = second_term(place, loss, z, labels, rows, names, negatives_only=True)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def _means_in_two_processes(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/means", rank=rank, world_size=2
    )
    _, x, labels = toy("TripletMarginLoss")
    encoder = nn.Sequential(nn.Linear(D, D), SEEOutput())
    encoder.load_state_dict(torch.load(f"{folder}/start.pt"))
    model = nn.parallel.DistributedDataParallel(encoder)
    for step in range(3):  # the processes see different classes, and different numbers of them
        numbers = torch.arange(len(x)).roll(5 * step)[:16].chunk(2)[rank]
        encoder[1].labels = labels[numbers]
        model(x.detach()[numbers]).backward()
    torch.save(encoder.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


class SEEOutput(nn.Module):
    "SEE inside the module that DistributedDataParallel wraps, as in Lightning."

    def __init__(self):
        super().__init__()
        loss = losses.TripletMarginLoss(margin=0.3)
        self.see = SEELoss(loss, 4, centers=RunningMeans(C, D, 0.5), generator=seeded(3))

    def forward(self, x):
        return self.see(x, self.labels)


def test_running_means_of_two_processes_are_those_of_one(tmp_path):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(D, D), SEEOutput())
    torch.save(encoder.state_dict(), tmp_path / "start.pt")
    _, x, labels = toy("TripletMarginLoss")
    for step in range(3):
        numbers = torch.arange(len(x)).roll(5 * step)[:16]
        encoder[1].labels = labels[numbers]
        encoder(x.detach()[numbers])
    alone = encoder[1].see.centers
    in_processes(_means_in_two_processes, tmp_path, n=2)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(state["1.see.centers.means"], alone.means)
        assert torch.equal(state["1.see.centers.seen"], alone.seen)


def _in_two_processes(rank, names, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for name in names:
        result = _one_step(name, rank, 2)
        if rank == 0:
            torch.save(result, f"{folder}/{name}.pt")
    torch.distributed.destroy_process_group()


def _one_step(name, rank, world):
    "Gradients of an encoder and of the proxies; the batch is shared out between the processes."
    name, _, extra = name.partition("+")
    loss, x, labels = toy(name)
    encoder = nn.Linear(D, D)
    weight = torch.eye(D) + 0.1 * torch.randn(D, D, generator=seeded(1))
    encoder.load_state_dict({"weight": weight, "bias": torch.zeros(D)})
    wrapped, miner = loss, miners.MultiSimilarityMiner(0.5) if extra == "miner" else None
    if world > 1:
        encoder = nn.parallel.DistributedDataParallel(encoder)
        wrapped, miner = DistributedLossWrapper(loss), miner and DistributedMinerWrapper(miner)
    options = {"centers": RunningMeans(C, D, 0.5)} if extra == "running" else {}
    if extra in POINTS:
        options = {"expansion": build_expansion(extra)}
    see = SEELoss(wrapped, 4, 1.0, generator=seeded(3), miner=miner, **options)
    mine = torch.randperm(len(x), generator=seeded(2)).chunk(world)[rank]
    see(encoder(x.detach()[mine]), labels[mine]).backward()
    proxies = [p.grad for p in loss.parameters()]
    for gradient in proxies if world > 1 else []:
        torch.distributed.all_reduce(gradient)
        gradient /= world * world  # averaged; and the library's wrapper multiplies by the processes
    return [p.grad for p in encoder.parameters()] + proxies


def test_two_processes_learn_what_one_does(tmp_path):
    names = ["ProxyAnchorLoss", "ProxyAnchorLoss+mixup", "SoftTripleLoss", "FastAPLoss"]
    names += ["MultiSimilarityLoss+miner", "ThresholdConsistentMarginLoss", "TripletMarginLoss"]
    names += ["TripletMarginLoss+running", "TripletMarginLoss+embedding_expansion"]
    in_processes(_in_two_processes, names, tmp_path, n=2)
    for name in names:
        for shared, alone in zip(torch.load(tmp_path / f"{name}.pt"), _one_step(name, 0, 1)):
            close = {"rtol": 1e-4, "atol": 1e-5, "msg": lambda m: f"{name}: {m}"}
            torch.testing.assert_close(shared, alone, **close)


@st.composite
def batches(draw):
    "Unit embeddings with labels, some of them sources, and a K that fits."
    size, k = draw(st.integers(2, 16)), draw(st.integers(1, 6))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    z = F.normalize(torch.randn(size, k + 1 + draw(st.integers(0, 8)), dtype=torch.float64), dim=-1)
    labels = torch.randint(0, draw(st.integers(1, 5)), (size,))
    chosen = torch.randperm(size)[: draw(st.integers(0, size))]
    return Batch(z.requires_grad_(), labels, chosen), k


@pytest.mark.parametrize(
    "name", ["NormalizedSoftmaxLoss", "SoftTripleLoss", "MarginLoss", "NPairsLoss"]
)
def test_double_precision_stays(name):
    loss, x, labels = toy(name)
    value = SEELoss(loss.double(), centers=RunningMeans(C, D))(x.double(), labels)
    assert value.dtype == torch.float64 and gradients(value, x, loss)[0].isfinite().all()
    own = Layer().double()
    see = SEELoss(own, place="own", centers=own.layer.weight)
    assert see(x.double(), labels).dtype == torch.float64


@settings(max_examples=40)
@given(batches(), st.sampled_from(sorted(POINTS)), st.integers(0, 1000))
def test_augmentations_give_unit_rows_labels_and_gradients(problem, name, seed):
    batch, k = problem
    centers = F.normalize(torch.randn_like(batch.embeddings), dim=-1)[batch.chosen]
    batch, way = batch._replace(generator=seeded(seed)), build_expansion(name)
    rows, own = way.rows(batch, centers, k)
    batch.generator.manual_seed(seed)
    again, _ = way.rows(batch, centers, k)
    assert rows.shape == (len(own), batch.embeddings.shape[1]) and torch.equal(rows, again)
    assert torch.equal(own, batch.labels[batch.chosen].repeat_interleave(k))
    if name == "mixup":
        _, others, share = way.mixtures(batch, k)
        assert 0 <= share <= 1
        assert len(batch.labels.unique()) == 1 or (own != others.flatten()).all()
    assert ((rows.norm(dim=-1) - 1).abs() < 1e-9).all()
    if len(rows):
        (gradient,) = torch.autograd.grad(rows.sin().sum(), batch.embeddings)
        assert gradient.isfinite().all() and gradient[batch.chosen].any(-1).all()


@pytest.mark.parametrize("expansion", sorted(POINTS))
@pytest.mark.parametrize("name", ["SoftTripleLoss", "NPairsLoss", "FastAPLoss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_augmentation_in_every_kind_of_loss(expansion, name, dtype):
    loss, x, labels = toy(name)
    see = SEELoss(loss, 4, expansion=build_expansion(expansion), generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = see(x.to(dtype), labels)
    assert value.isfinite() and gradients(value, x, loss)[0].isfinite().all()
    if dtype == torch.float32:
        assert value != loss(x, labels)


def test_the_closed_form_is_a_term_like_any_other():
    x, y = F.normalize(torch.randn(12, 16), dim=1).requires_grad_(), torch.arange(12) % 4
    inner = losses.ProxyAnchorLoss(4, 16)
    see = SEELoss(inner, 8, 0.2, fraction=0.5, expansion="closed_form", encoder_grad=False)
    chosen = (x * F.normalize(inner.proxies, dim=1)[y]).sum(1).topk(6).indices
    second = expected_proxy_anchor(x[chosen].detach(), y[chosen], inner.proxies, 8)
    by_hand = inner(x, y) + 0.2 * second
    torch.testing.assert_close(see(x, y), by_hand)
    for got, expected in zip(gradients(see(x, y), x, inner), gradients(by_hand, x, inner)):
        torch.testing.assert_close(got, expected)
    none = SEELoss(inner, fraction=0.0, expansion="closed_form")
    torch.testing.assert_close(none(x, y), inner(x, y))
    assert gradients(none(x, y), x, inner)[1].isfinite().all()
    with pytest.raises(SeeError, match="the library's ProxyAnchorLoss with its own proxies"):
        SEELoss(losses.ProxyNCALoss(4, 16), expansion="closed_form")
