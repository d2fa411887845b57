"Every entry of the registry against its published formula in float64, its gradient, and its state."

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils import loss_and_miner_utils as pml_pairs

from see_nb.baselines.hyperbolic import PoincareDistance, ViewSoftmaxLoss
from see_nb.baselines.memory import KoLeoRegularizer
from see_nb.baselines.mining import Mined, asking
from see_nb.baselines.pair_losses import QuadrupletLoss
from see_nb.baselines.proxy_losses import CentersRegularizer
from see_nb.baselines.registry import KINDS, LOSSES, PAIRS, build_loss, build_miner

C, D = 4, 8


def batch(per_class=2, seed=0, lean=0.3, dtype=torch.float64):
    "Unit embeddings that lean to one side, so that hinges are on both sides of their margins; labels."
    x = torch.randn(C * per_class, D, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x + lean, dim=-1), torch.arange(C).repeat_interleave(per_class)


N_FEATURES = 5


def prepared(loss, x, y):
    "The loss, after what training does before an epoch and before a batch."
    features = x.detach()[:, :N_FEATURES]
    for part in asking(loss, "training set"):
        part.refresh(F.normalize(x.detach(), dim=-1).float(), y, features.float())
    for part in asking(loss, "features"):
        part.take(features, None)
    return loss


def make(name, dtype=torch.float64):
    torch.manual_seed(0)
    return build_loss(name, C, D, N_FEATURES).to(dtype)


def cosines(x, proxies):
    return [[(z @ p / p.norm()).item() for p in proxies] for z in x]


def cross_entropy(logits, y):
    return math.log(sum(math.exp(v - logits[y]) for v in logits))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def above_zero(values):
    "Mean of what is above zero."
    kept = [v for v in values if v > 0]
    return mean(kept) if kept else 0.0


def pairs(y):
    "Positive pairs, and negative ones."
    every = [(i, j) for i in range(len(y)) for j in range(len(y)) if i != j]
    return [[(i, j) for i, j in every if (y[i] == y[j]) == same] for same in (True, False)]


def sides(s, y):
    "Of each anchor: its similarities to classmates, and to the others."
    both = pairs(y)
    return [[[s[i][j] for a, j in side if a == i] for side in both] for i in range(len(y))]


def with_own(loss, x, y, change, scale):
    "Cross-entropy after a change of the own cosine."
    total = []
    for s, own in zip(cosines(x, loss.W.T), y):
        s[own] = change(s[own])
        total.append(cross_entropy([scale * v for v in s], own))
    return mean(total)


def arc(c, m=0.5):
    return math.cos(math.acos(c) + m) if math.acos(c) <= math.pi - m else c - m * math.sin(m)


def proxy_nca(scale):
    def value(loss, x, y):
        far = -scale * torch.cdist(x, F.normalize(loss.proxies, dim=-1)).square()
        return mean(map(cross_entropy, far.tolist(), y))

    return value


def proxy_anchor(loss, x, y, alpha=32, margin=0.1):
    s, positive, negative = cosines(x, loss.proxies), [], []
    for p in range(C):
        own = [math.exp(-alpha * (s[i][p] - margin)) for i in range(len(x)) if y[i] == p]
        other = [math.exp(alpha * (s[i][p] + margin)) for i in range(len(x)) if y[i] != p]
        positive += [math.log(1 + sum(own))] if own else []
        negative.append(math.log(1 + sum(other)))
    return mean(positive) + mean(negative)


def subcenter_arcface(loss, x, y):
    total = []
    for s, own in zip(cosines(x, loss.W.T), y):
        s = [max(s[3 * c : 3 * c + 3]) for c in range(C)]
        s[own] = arc(s[own])
        total.append(cross_entropy([64 * v for v in s], own))
    return mean(total)


def soft_triple(loss, x, y, k=10):
    total = []
    for s, own in zip(cosines(x, loss.fc.T), y):
        parts = torch.tensor(s, dtype=torch.float64).view(C, k)
        logits = 20 * ((parts / 0.1).softmax(1) * parts).sum(1)
        logits[own] -= 20 * 0.01
        total.append(cross_entropy(logits.tolist(), own))
    w = F.normalize(loss.fc.T, dim=-1).view(C, k, -1)
    gaps = [
        (2 + 1e-5 - 2 * v[i] @ v[j]).sqrt().item() for v in w for j in range(k) for i in range(j)
    ]
    return mean(total) + 0.2 * sum(gaps) / (C * k * (k - 1))


def contrastive(loss, x, y):
    d, (positive, negative) = torch.cdist(x, x).tolist(), pairs(y)
    return above_zero(d[i][j] for i, j in positive) + above_zero(1 - d[i][j] for i, j in negative)


def semi_hard(loss, x, y):
    d, (positive, negative) = torch.cdist(x, x).square().tolist(), pairs(y)
    gaps = [d[i][k] - d[i][j] for i, j in positive for a, k in negative if a == i]
    return above_zero(0.2 - gap for gap in gaps if 0 < gap <= 0.2)


def lifted_structure(loss, x, y):
    d, (positive, negative) = torch.cdist(x, x).tolist(), pairs(y)
    total = []
    for i, j in positive:
        pushes = sum(math.exp(1 - d[a][k]) for a, k in negative if a in (i, j))
        total.append(max(math.log(pushes) + d[i][j], 0) ** 2)
    return mean(total) / 2


def multi_similarity(loss, x, y):
    total = []
    for own, others in sides((x @ x.T).tolist(), y):
        hard_own = [math.exp(-2 * (v - 0.5)) for v in own if v - 0.1 < max(others)]
        hard_others = [math.exp(50 * (v - 0.5)) for v in others if v + 0.1 > min(own)]
        total.append(math.log(1 + sum(hard_own)) / 2 + math.log(1 + sum(hard_others)) / 50)
    return mean(total)


def circle(loss, x, y, m=0.4, gamma=80):
    total = []
    for own, others in sides((x @ x.T).tolist(), y):
        pull = sum(math.exp(-gamma * max(1 + m - v, 0) * (v - 1 + m)) for v in own)
        push = sum(math.exp(gamma * max(v + m, 0) * (v - m)) for v in others)
        total.append(math.log(1 + pull * push))
    return above_zero(total)


def supcon(loss, x, y, tau=0.1):
    rows = sides((x @ x.T / tau).tolist(), y)
    return mean(
        mean(cross_entropy(own + others, own.index(v)) for v in own) for own, others in rows
    )


def ntxent(loss, x, y, tau=0.1):
    rows = sides((x @ x.T / tau).tolist(), y)
    return mean(cross_entropy([v, *others], 0) for own, others in rows for v in own)


def on_cosine(loss, x, y):
    rows = sides((x @ x.T).tolist(), y)
    costs = [[1 - v for v in own] + [max(v - 0.5, 0) for v in others] for own, others in rows]
    return sum(map(sum, costs)) / len(x)


FORMULAS = {
    "proxy_anchor": proxy_anchor,
    "proxy_nca": proxy_nca(8),
    "proxy_nca_pp": proxy_nca(9),
    "normalized_softmax": lambda loss, x, y: with_own(loss, x, y, lambda c: c, 1 / 0.05),
    "cosface": lambda loss, x, y: with_own(loss, x, y, lambda c: c - 0.35, 64),
    "arcface": lambda loss, x, y: with_own(loss, x, y, arc, 64),
    "subcenter_arcface": subcenter_arcface,
    "soft_triple": soft_triple,
    "contrastive": contrastive,
    "triplet_semihard": semi_hard,
    "lifted_structure": lifted_structure,
    "multi_similarity": multi_similarity,
    "circle": circle,
    "supcon": supcon,
    "ntxent": ntxent,
    "xbm": lambda loss, x, y: 2 * on_cosine(loss, x, y),  # the batch, and the memory that holds it
    "irt_r": lambda loss, x, y: (
        on_cosine(loss, x, y)
        - 0.7 * mean(math.log(d) for d in torch.cdist(x, x).fill_diagonal_(9).amin(1).tolist())
    ),
}
IN_THE_NOTEBOOK = {"curricularface", "quadruplet", "hyp", "log_ratio"}
IN_THE_NOTEBOOK |= {"htl", "smart_mining", "mic", "hard_proxies", "deep_ranking"}
SAMPLED = {"triplet_distance_weighted", "margin"}


def test_each_entry_has_a_formula():
    assert set(LOSSES) == set(FORMULAS) | IN_THE_NOTEBOOK | SAMPLED


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("per_class", [2, 3])
def test_library_entries_are_their_published_formula(name, per_class):
    x, y = batch(per_class)
    loss = make(name)
    whole = Mined(loss, build_miner(name)) if LOSSES[name].miner else loss
    expected = FORMULAS[name](loss, x, y.tolist())
    assert expected > 1e-3
    assert whole(x, y).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", sorted(SAMPLED))
def test_sampled_triplets(name):
    x, y = batch(4)
    torch.manual_seed(0)
    triplets = a, p, n = build_miner(name)(x, y)
    assert len(a) and (y[a] == y[p]).all() and (y[a] != y[n]).all() and (a != p).all()
    d = torch.cdist(x, x)
    assert (d[a, n] < 1.4).all()
    loss = make(name)
    value = loss(x, y, triplets).item()
    positive, negative = d[a, p], d[a, n]
    if name == "margin":
        assert loss.beta.shape == (C,) and loss.beta.requires_grad
        assert (loss.beta == torch.tensor(1.2)).all()
        terms = torch.cat([(positive - 1.2 + 0.2).relu(), (1.2 - negative + 0.2).relu()])
    else:
        terms = (positive - negative + 0.2).relu()
    assert value == pytest.approx(above_zero(terms.tolist()), rel=1e-6)


# MIC's adversary reverses a gradient: who is taught what is checked in its notebook
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "mic"])
def test_gradients(name):
    x, y = batch(3, seed=1)
    points = torch.rand(len(y), 2, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    labels = points if name == "log_ratio" else y
    mined = () if not LOSSES[name].miner else (build_miner(name)(x, y),)

    def value(z):  # a new one each time: the memory of xbm must not grow
        torch.manual_seed(0)  # of losses that draw triplets
        return prepared(make(name).eval(), x, y)(z, labels, *mined)

    # weights, margins and memory are constants to the gradient; htl's and smart mining's: notebooks
    if name not in ("circle", "quadruplet", "xbm", "htl", "smart_mining"):
        assert torch.autograd.gradcheck(value, x.requires_grad_())
    loss = prepared(make(name, torch.float32), x, y)
    x = x.detach().float().requires_grad_()
    gradients = torch.autograd.grad(loss(x, labels, *mined), [x, *loss.parameters()])
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)


def test_the_gradient_of_quadruplets_holds_the_margins():
    x, y = batch(3, seed=1)
    without = lambda x: QuadrupletLoss(0, 0)(x, y)
    assert torch.autograd.gradcheck(without, x.requires_grad_())
    d, (positive, negative) = torch.cdist(*[F.normalize(x)] * 2).square(), pairs(y.tolist())
    far, near = (torch.stack([d[i] for i in side]).mean() for side in (negative, positive))
    kinds = (
        (1, lambda i, l, k: l == i),
        (0.5, lambda i, l, k: y[i] not in (y[l], y[k])),
    )
    held = 0
    for weight, wanted in kinds:
        gap = weight * (far - near).item()
        terms = [d[i, j] - d[k] + gap for i, j in positive for k in negative if wanted(i, *k)]
        held = held + torch.stack([v for v in terms if v > 0]).mean()
    torch.testing.assert_close(
        *(torch.autograd.grad(v, x)[0] for v in (QuadrupletLoss()(x, y), held))
    )


def value_of(loss, x, y):
    "The next value, with the same draws."
    torch.manual_seed(2)
    for part in asking(loss, "features"):
        part.take(x[:, :N_FEATURES], None)
    return loss(x, y)


@pytest.mark.parametrize("name", LOSSES)
def test_state_goes_round(name):
    x, y = batch(dtype=torch.float32)
    y = y.float() if name == "log_ratio" else y
    first = prepared(make(name, torch.float32), x, y.long())
    value_of(first, x, y)
    torch.manual_seed(1)
    second = build_loss(name, C, D, N_FEATURES)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        assert torch.equal(value_of(first, x, y), value_of(second, x, y))


def test_labels_as_names_of_classes_do_not_matter():
    x, y = batch(3)
    # classmates keep their order: the views of hyp are counted in it
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    order = order[(y[order] * len(y) + order).argsort()].view(C, 3)[torch.tensor([2, 0, 3, 1])]
    order = order.T.flatten()
    known = SAMPLED | {"xbm", "deep_ranking", "htl", "smart_mining", "mic"}  # draw, or know classes
    for name in set(LOSSES) - known:
        if LOSSES[name].kind == PAIRS:
            loss = make(name)
            same, other = loss(x, y).item(), loss(x[order], 10 + 7 * y[order]).item()
            assert other == pytest.approx(same, rel=1e-9), name


@settings(max_examples=50)
@given(st.floats(0.01, 2), st.floats(0.1, 2), st.integers(0, 1000))
def test_poincare_distance_is_a_distance(curvature, reach, seed):
    radius = reach / curvature**0.5
    distance = PoincareDistance(curvature, radius, normalize_embeddings=False)
    x = 3 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    d = distance(x)
    off = ~torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(d, d.T)
    assert (d[off] > 0).all() and d.diagonal().max() < 1e-4
    assert (distance.to_ball(x).norm(dim=-1) < curvature**-0.5).all()
    assert (d[:, None, :] <= d[:, :, None] + d[None] + 1e-6).all()
    centre = distance(torch.full((1, 4), 1e-9, dtype=torch.float64), x)[0]
    expected = 2 * x.norm(dim=-1).clamp_max(radius)
    torch.testing.assert_close(centre, expected, rtol=1e-6, atol=1e-6)


def test_nearly_flat_is_twice_the_plain_distance():
    x, _ = batch()
    flat = PoincareDistance(curvature=1e-8, clip_radius=1.0)(x)
    torch.testing.assert_close(flat, 2 * torch.cdist(x, x), rtol=1e-5, atol=1e-5)


def test_a_batch_without_pairs_costs_nothing():
    x = F.normalize(torch.randn(4, D, requires_grad=True), dim=-1)
    for labels in (torch.arange(4), torch.zeros(4, dtype=torch.long)):
        for loss in (ViewSoftmaxLoss(), QuadrupletLoss()):
            value = loss(x, labels)
            (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
            assert value == 0 and (gradient == 0).all()


def test_views_take_references_and_pairs():
    x, y = batch(2)
    loss = ViewSoftmaxLoss(0.1, distance=CosineSimilarity())
    pairs_of_all = pml_pairs.get_all_pairs_indices(y)
    torch.testing.assert_close(loss(x, y, pairs_of_all), loss(x, y))
    # one reference per class, all in one view: each anchor has one positive, C - 1 negatives
    references, names = batch(1, seed=2)
    s = (x @ references.T / 0.1).tolist()
    own_view = mean(cross_entropy(s[i], y[i]) for i in range(0, len(y), 2))
    expected = own_view + mean(cross_entropy(s[i], y[i]) for i in range(1, len(y), 2))
    assert loss(x, y, None, references, names).item() == pytest.approx(expected, rel=1e-6)


def test_entropy_pushes_the_nearest_apart():
    x = F.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]]), dim=-1).requires_grad_()
    (gradient,) = torch.autograd.grad(KoLeoRegularizer()(x), x)
    assert gradient[0, 1] < 0 < gradient[1, 1]


def test_centres_of_the_largest_data_set_fit():
    centers = torch.randn(11318 * 10, 8, requires_grad=True)
    CentersRegularizer(10)(centers).backward()
    assert centers.grad.isfinite().all()


def test_settings_and_sources_are_complete():
    for name, entry in LOSSES.items():
        assert entry.settings and any(char.isdigit() for char in entry.source), name
        assert entry.samples_per_class >= 2 and entry.kind in KINDS
    assert len({entry.label for entry in LOSSES.values()}) == len(LOSSES)
