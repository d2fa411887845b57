"SEE around every loss of the library, and every augmentation inside it."

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.utils.distributed import (
    DistributedLossWrapper,
    DistributedMinerWrapper,
)
from torch import nn

from see_nb.method.adapters import (
    RunningMeans,
    batch_means,
    find_proxies,
    second_term,
    second_term_kind,
)
from see_nb.method.augmentations import Batch, make_synthetics
from see_nb.method.registry import EXPANSIONS, build_expansion
from see_nb.method.see_loss import SEELoss, class_proxies

C, D = 6, 12
OWN = {
    "ArcFaceLoss": lambda: losses.ArcFaceLoss(C, D),
    "CosFaceLoss": lambda: losses.CosFaceLoss(C, D),
    "LargeMarginSoftmaxLoss": lambda: losses.LargeMarginSoftmaxLoss(C, D),
    "NormalizedSoftmaxLoss": lambda: losses.NormalizedSoftmaxLoss(C, D),
    "P2SGradLoss": lambda: losses.P2SGradLoss(D, C),
    "ProxyAnchorLoss": lambda: losses.ProxyAnchorLoss(C, D),
    "ProxyNCALoss": lambda: losses.ProxyNCALoss(C, D),
    "SoftTripleLoss": lambda: losses.SoftTripleLoss(C, D, centers_per_class=3),
    "SphereFaceLoss": lambda: losses.SphereFaceLoss(C, D),
    "SubCenterArcFaceLoss": lambda: losses.SubCenterArcFaceLoss(num_classes=C, embedding_size=D),
}
PAIRS = {
    "AngularLoss": ("references", losses.AngularLoss),
    "CircleLoss": ("references", losses.CircleLoss),
    "ContrastiveLoss": ("references", losses.ContrastiveLoss),
    "FastAPLoss": ("batch", losses.FastAPLoss),
    "GeneralizedLiftedStructureLoss": ("references", losses.GeneralizedLiftedStructureLoss),
    "HistogramLoss": ("pairs", losses.HistogramLoss),
    "IntraPairVarianceLoss": ("references", losses.IntraPairVarianceLoss),
    "LiftedStructureLoss": ("pairs", losses.LiftedStructureLoss),
    "MarginLoss": ("references", lambda: losses.MarginLoss(learn_beta=True, num_classes=C)),
    "MultiSimilarityLoss": ("references", losses.MultiSimilarityLoss),
    "NCALoss": ("references", losses.NCALoss),
    "NPairsLoss": ("pairs", losses.NPairsLoss),
    "NTXentLoss": ("references", losses.NTXentLoss),
    "PNPLoss": ("batch", losses.PNPLoss),
    "RankedListLoss": ("batch", lambda: losses.RankedListLoss(margin=0.4, Tn=1.0)),
    "SignalToNoiseRatioContrastiveLoss": ("references", losses.SignalToNoiseRatioContrastiveLoss),
    "SupConLoss": ("references", losses.SupConLoss),
    "ThresholdConsistentMarginLoss": ("pairs", losses.ThresholdConsistentMarginLoss),
    "TripletMarginLoss": ("references", lambda: losses.TripletMarginLoss(margin=0.3)),
    "TupletMarginLoss": ("references", losses.TupletMarginLoss),
}
REFUSED = {
    "DynamicSoftMarginLoss": (
        losses.DynamicSoftMarginLoss,
        "backward through the graph a second time",
    ),  # fails so alone, too
    "InstanceLoss": (losses.InstanceLoss, "depends on the order of its rows"),
    "ManifoldLoss": (
        lambda: losses.ManifoldLoss(D, K=3),
        "cannot be called with embeddings and labels",
    ),
    "SmoothAPLoss": (losses.SmoothAPLoss, "same number of elements"),
    "VICRegLoss": (losses.VICRegLoss, "labels are ref_labels are not supported"),
    "MultipleLosses": (
        lambda: losses.MultipleLosses([losses.ContrastiveLoss()]),
        "Wrap each of them instead",
    ),
    "SelfSupervisedLoss": (
        lambda: losses.SelfSupervisedLoss(losses.NTXentLoss()),
        "takes references where SEE gives labels",
    ),
}
WRAPPERS_AND_BASES = {
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "CrossBatchMemory",
    "GenericPairLoss",
}
LOSSES = {**OWN, **{name: make for name, (_, make) in PAIRS.items()}}
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
    assert there - WRAPPERS_AND_BASES == {*OWN, *PAIRS, *REFUSED}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why_and_what_to_use(name):
    make, why = REFUSED[name]
    with pytest.raises(ValueError, match=why) as error:
        SEELoss(make())
    assert "Use a loss" in str(error.value) or "Wrap" in str(error.value)


@every_loss
def test_the_kind_is_found_without_a_trace(name):
    loss, _, _ = toy(name)
    before, state = [p.clone() for p in loss.parameters()], torch.get_rng_state()
    see = SEELoss(loss)
    assert see.kind == (PAIRS[name][0] if name in PAIRS else "own")
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, loss.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
    if name in PAIRS:
        with pytest.raises(ValueError, match=f"{name} has none"):
            class_proxies(loss)


@every_loss
def test_without_weight_it_is_the_loss_alone(name):
    loss, x, labels = toy(name)
    plain = loss(x, labels)
    expected = gradients(plain, x, loss)
    for options in ({"weight": 0}, {"expansion": "none"}, {"fraction": 0.0}):
        inner, _, _ = toy(name)  # a new one: P2SGradLoss rounds its proxies at each call
        same = SEELoss(inner, **options)(x, labels)
        assert torch.equal(plain, same)
        assert all(torch.equal(a, b) for a, b in zip(expected, gradients(same, x, inner)))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_and_reach_the_encoder(name, dtype):
    loss, x, labels = toy(name)
    see = SEELoss(loss, weight=1.0, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = see(x.to(dtype), labels)
    assert value.isfinite() and value.dtype == torch.float32
    both, plain = gradients(value, x, loss), gradients(loss(x, labels), x, loss)
    assert all(g.isfinite().all() for g in both)
    assert all(p.dtype == torch.float32 for p in loss.parameters())
    if dtype == torch.float32:
        assert (both[0] - plain[0]).abs().max() > 1e-4 * plain[0].abs().max()


@every_loss
def test_the_second_term_reaches_the_encoder_through_the_synthetics(name):
    loss, x, labels = toy(name)
    kind, z = second_term_kind(loss), F.normalize(x.detach(), dim=-1)
    synthetics = (
        build_expansion("see")(z, batch_means(z, labels), 4, generator=seeded())
        .flatten(0, 1)
        .requires_grad_()
    )
    value = second_term(kind, loss, z, labels, synthetics, labels.repeat_interleave(4))
    (slopes,) = torch.autograd.grad(value, synthetics)
    assert slopes.isfinite().all() and slopes.abs().max() > 1e-6


@pytest.mark.parametrize("name", OWN)
def test_without_encoder_grad_only_proxies_learn(name):
    loss, x, labels = toy(name)
    plain = gradients(loss(x, labels), x, loss)
    held = gradients(SEELoss(loss, encoder_grad=False, weight=1.0)(x, labels), x, loss)
    torch.testing.assert_close(
        held[0], plain[0], rtol=1e-5, atol=1e-8 if name == "P2SGradLoss" else 0
    )  # it rounds its proxies at each call
    assert torch.equal(held[0], plain[0]) or name == "P2SGradLoss"
    assert not torch.allclose(held[1], plain[1])


@pytest.mark.parametrize("name", PAIRS)
def test_without_proxies_somebody_must_learn(name):
    with pytest.raises(ValueError, match="encoder_grad: with False only proxies learn"):
        SEELoss(LOSSES[name](), encoder_grad=False)


@every_loss
def test_learning_happens(name):
    "Free embeddings and proxies: the loss falls, and neighbours become classmates."
    loss, x, labels = toy(name, spread=2.0)
    free, see = nn.Parameter(x.detach().clone()), SEELoss(loss, 4, generator=seeded())
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
    assert history[-1] < history[0] and first < 0.5 and recall() > 0.7, (
        history[0],
        history[-1],
        first,
        recall(),
    )


@pytest.mark.parametrize(
    "name", ["ContrastiveLoss", "TripletMarginLoss", "TupletMarginLoss", "NTXentLoss", "SupConLoss"]
)
def test_references_and_pairs_are_the_same_second_term(name):
    loss, x, labels = toy(name)
    z = F.normalize(x.detach(), dim=-1)
    synthetics, targets = (
        build_expansion("see")(z, batch_means(z, labels), 4, generator=seeded()).flatten(0, 1),
        labels.repeat_interleave(4),
    )
    one, other = (
        second_term(kind, loss, z, labels, synthetics, targets) for kind in ("references", "pairs")
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["SoftTripleLoss", "SubCenterArcFaceLoss"])
def test_each_is_expanded_around_the_nearest_proxy_of_its_class(name):
    loss, x, labels = toy(name)
    see = SEELoss(loss, 4, fraction=1.0)
    proxies = find_proxies(loss).detach()
    z = F.normalize(x.detach(), dim=-1)
    centers = see._centers(z, labels, proxies)
    cosines = torch.einsum("bd,ckd->bck", z, F.normalize(proxies, dim=-1))
    torch.testing.assert_close((z * centers).sum(-1), cosines[torch.arange(len(z)), labels].amax(1))


def test_lonely_embeddings_are_left_alone():
    loss, x, _ = toy("TripletMarginLoss")
    labels = torch.cat([torch.arange(20), torch.tensor([20, 20, 21, 21])])
    synthetics, targets = SEELoss(loss, 4, fraction=1.0)._expand(x, labels)
    assert sorted(targets.tolist()) == [20] * 8 + [21] * 8 and len(synthetics) == 16
    alone = torch.arange(24)
    assert torch.equal(SEELoss(loss)(x, alone), loss(x, alone))


@pytest.mark.parametrize("n_classes", [0, C])
def test_running_means_follow_their_formula_and_survive_a_round_trip(n_classes):
    loss, x, labels = toy("MultiSimilarityLoss")
    see, means = SEELoss(loss, 4, centers=RunningMeans(0.8, n_classes), generator=seeded()), {}
    for step in range(4):
        batch = torch.randperm(len(x), generator=seeded(step))[:10]
        see(x[batch], labels[batch])
        z = F.normalize(x.detach()[batch].double(), dim=-1)
        for c in labels[batch].unique().tolist():
            new = z[labels[batch] == c].mean(0)
            means[c] = 0.8 * means[c] + 0.2 * new if c in means else new
    for c, mean in means.items():
        torch.testing.assert_close(see.centers.means[c].double(), mean, rtol=0, atol=1e-6)
    again = SEELoss(loss, 4, centers=RunningMeans(0.8, n_classes), generator=seeded())
    again.load_state_dict(see.state_dict())
    values = []
    for module in (see, again):
        module.generator.manual_seed(9)
        values.append(module(x, labels))
    assert torch.equal(*values) and torch.equal(see.centers.means, again.centers.means)
    before = see.centers.means.clone()
    see.eval()(x, labels)
    assert torch.equal(see.centers.means, before)
    if n_classes:
        with pytest.raises(ValueError, match="labels: expected classes 0 to 5, got up to 6"):
            see.train()(x, labels + 1)


@every_loss
def test_state_dict_round_trip(name):
    loss, x, labels = toy(name)
    other = LOSSES[name]()
    one, two = (
        SEELoss(inner, 4, centers=RunningMeans(0.5), generator=seeded()) for inner in (loss, other)
    )
    one(x, labels)
    two.load_state_dict(one.state_dict())
    one.eval(), two.eval()
    for module in (one, two):
        module.generator.manual_seed(1)
    torch.testing.assert_close(one(x, labels), two(x, labels), rtol=0, atol=0)


def test_tuples_of_a_miner_go_to_the_first_term_and_a_miner_to_both():
    loss, x, labels = toy("TripletMarginLoss")
    miner = miners.TripletMarginMiner(margin=0.3, type_of_triplets="all")
    mined = miner(x, labels)
    given, plain = (SEELoss(loss, generator=seeded())(x, labels, i) for i in (mined, None))
    torch.testing.assert_close(given - loss(x, labels, mined), plain - loss(x, labels))
    see = SEELoss(loss, miner=miner, generator=seeded())
    value = see(x, labels)
    see.generator.manual_seed(0)
    synthetics, targets = see._expand(x, labels)
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


def test_the_memory_holds_images_only_and_its_miner_chooses():
    _, x, labels = toy()
    miner, inner = miners.BatchHardMiner(), losses.TripletMarginLoss(margin=0.5)
    plain, inside = (
        losses.CrossBatchMemory(inner, D, memory_size=60, miner=miner) for _ in range(2)
    )
    see = SEELoss(inside, generator=seeded())
    for step in range(4):  # around the end of the memory
        y = F.normalize(x + 0.1 * step, dim=-1)
        first, value = plain(y, labels), see(y, labels)
        see.generator.manual_seed(step)
    assert (
        torch.equal(plain.embedding_memory, inside.embedding_memory)
        and plain.queue_idx == inside.queue_idx
    )
    see.generator.manual_seed(2)
    synthetics, targets = see._expand(y, labels)
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
    ways = [
        own.layer.weight,
        rows,
        lambda labels: own.layer.weight[labels],
        nn.Embedding(C, D, _weight=rows),
    ]
    values = [SEELoss(own, centers=way, generator=seeded())(x, labels) for way in ways]
    assert all(torch.equal(v, values[0]) for v in values) and values[0] != own(x, labels)
    assert list(SEELoss(own, centers=ways[1]).state_dict()) == ["centers", "loss.layer.weight"]
    with pytest.raises(ValueError, match="SEE found no place for synthetics in Layer"):
        SEELoss(own)
    with pytest.raises(ValueError, match=r"labels: expected classes 0 to 5"):
        SEELoss(own, centers=ways[1])(x, labels + 1)


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
    encoder.load_state_dict(
        {
            "weight": torch.eye(D) + 0.1 * torch.randn(D, D, generator=seeded(1)),
            "bias": torch.zeros(D),
        }
    )
    wrapped, miner = loss, miners.MultiSimilarityMiner(0.5) if extra == "miner" else None
    if world > 1:
        encoder, wrapped = (
            nn.parallel.DistributedDataParallel(encoder),
            DistributedLossWrapper(loss),
        )
        miner = miner and DistributedMinerWrapper(miner)
    options = (
        {"expansion": extra}
        if extra in EXPANSIONS
        else {"centers": RunningMeans(0.5)}
        if extra == "running"
        else {}
    )
    see = SEELoss(wrapped, 4, 1.0, generator=seeded(3), miner=miner, **options)
    mine = torch.randperm(len(x), generator=seeded(2)).chunk(world)[rank]
    see(encoder(x.detach()[mine]), labels[mine]).backward()
    proxies = [p.grad for p in loss.parameters()]
    for gradient in proxies if world > 1 else []:
        torch.distributed.all_reduce(gradient)
        gradient /= (
            world * world
        )  # averaged; and the library's wrapper multiplies by the number of processes
    return [p.grad for p in encoder.parameters()] + proxies


def test_two_processes_learn_what_one_does(tmp_path):
    proxies = ["ProxyAnchorLoss", "ProxyAnchorLoss+mixup", "SoftTripleLoss"]
    pairs = [
        "TripletMarginLoss",
        "TripletMarginLoss+running",
        "TripletMarginLoss+embedding_expansion",
        "MultiSimilarityLoss+miner",
    ]
    names = [*proxies, *pairs, "ThresholdConsistentMarginLoss", "FastAPLoss"]
    torch.multiprocessing.spawn(_in_two_processes, (names, str(tmp_path)), nprocs=2)
    for name in names:
        for shared, alone in zip(torch.load(tmp_path / f"{name}.pt"), _one_step(name, 0, 1)):
            torch.testing.assert_close(
                shared, alone, rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}"
            )


def test_alone_the_wrapper_changes_nothing():
    loss, x, labels = toy("TripletMarginLoss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(
            SEELoss(DistributedLossWrapper(loss), generator=seeded())(x, labels),
            SEELoss(loss, generator=seeded())(x, labels),
        )


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
    value = SEELoss(loss.double(), centers=RunningMeans())(x.double(), labels)
    assert value.dtype == torch.float64 and gradients(value, x, loss)[0].isfinite().all()
    own = Layer().double()
    assert SEELoss(own, centers=own.layer.weight)(x.double(), labels).dtype == torch.float64


@settings(max_examples=40, deadline=None)
@given(batches(), st.sampled_from(sorted(set(EXPANSIONS) - {"none"})), st.integers(0, 1000))
def test_augmentations_give_unit_rows_labels_and_gradients(problem, name, seed):
    batch, k = problem
    centers = F.normalize(torch.randn_like(batch.embeddings), dim=-1)[batch.chosen]
    rows, targets = make_synthetics(
        build_expansion(name), batch, centers, k, generator=seeded(seed)
    )
    again, _ = make_synthetics(build_expansion(name), batch, centers, k, generator=seeded(seed))
    own = batch.labels[batch.chosen].repeat_interleave(k)
    assert rows.shape == (len(own), batch.embeddings.shape[1]) and torch.equal(rows, again)
    if name == "mixup":
        (share, first), (rest, second) = targets
        assert torch.equal(first, own) and 0 <= share <= 1 and share + rest == 1
        assert len(batch.labels.unique()) == 1 or (first != second).all()
    else:
        assert torch.equal(targets, own)
    assert ((rows.norm(dim=-1) - 1).abs() < 1e-9).all()
    if len(rows):
        (gradient,) = torch.autograd.grad(rows.sin().sum(), batch.embeddings)
        assert gradient.isfinite().all() and gradient[batch.chosen].any(-1).all()


@pytest.mark.parametrize("expansion", sorted(EXPANSIONS))
@pytest.mark.parametrize(
    "name", ["ProxyAnchorLoss", "SoftTripleLoss", "TripletMarginLoss", "NPairsLoss", "FastAPLoss"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_augmentation_in_every_kind_of_loss(expansion, name, dtype):
    loss, x, labels = toy(name)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = SEELoss(loss, 4, expansion=expansion, generator=seeded())(x.to(dtype), labels)
    assert value.isfinite() and gradients(value, x, loss)[0].isfinite().all()
    if dtype == torch.float32:
        assert (value == loss(x, labels)) == (expansion == "none")
