"Properties of the expansion and of the loss, for any shape."

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses

from see_nb.errors import SeeError
from see_nb.method.centers import mmd_centers
from see_nb.method.expansion import expand, expand_reference, expansion_errors
from see_nb.method.see_loss import SEELoss


@st.composite
def problems(draw):
    "Unit embeddings and centres, B x D, and a K that fits."
    batch, k = draw(st.integers(1, 12)), draw(st.integers(1, 20))
    dim = k + 1 + draw(st.integers(0, 30))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    z, w = (F.normalize(torch.randn(batch, dim, dtype=torch.float64), dim=-1) for _ in range(2))
    closeness = draw(st.floats(-1, 1))  # from opposite, through orthogonal, to on the centre
    return F.normalize(z + 10 * closeness**3 * w, dim=-1), w, k


@settings(max_examples=60)
@given(problems())
def test_invariants_hold_for_both_implementations(problem):
    z, w, k = problem
    for function in (expand, expand_reference):
        assert max(expansion_errors(z, w, function(z, w, k)).values()) < 1e-9
    z, w = z.float(), w.float()
    assert max(expansion_errors(z, w, expand(z, w, k)).values()) < 2e-5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, dtype=torch.float64, seed=0):
    return F.normalize(torch.randn(*shape, dtype=dtype, generator=seeded(seed)), dim=-1)


def test_noise_without_a_new_direction_still_gives_a_frame():
    "The source as its own noise: nothing is left after Gram-Schmidt, but QR has a direction."
    w = unit(5, 3, seed=1)
    z = unit(5, 3)  # the numbers that the same seed gives to the frame
    assert max(expansion_errors(z, w, expand(z, w, 2, generator=seeded())).values()) < 1e-13


@settings(max_examples=40)
@given(problems())
def test_reverse_forward_and_second_derivatives_agree(problem):
    z, w, k = problem
    rows = torch.randn_like(z)

    def value(z):
        torch.manual_seed(0)
        return expand(z, w, k).sin().sum()

    gradient = torch.func.grad(value)(z)
    scale = gradient.abs().max().clamp_min(1)
    _, along = torch.func.jvp(value, (z,), (rows,))
    assert (along - (gradient * rows).sum()).abs() < 1e-9 * scale * len(z)
    _, second = torch.func.jvp(torch.func.grad(value), (z,), (rows,))
    z = z.detach().requires_grad_()
    (first,) = torch.autograd.grad(value(z), z, create_graph=True)
    (twice,) = torch.autograd.grad((first * rows).sum(), z)
    assert torch.equal(first, gradient)
    assert (second - twice).abs().max() < 1e-9 * second.abs().max().clamp_min(1)


def test_expand_compiles_to_one_graph():
    z, w = unit(5, 9).requires_grad_(), unit(5, 9, seed=1)
    compiled = torch.compile(lambda z: expand(z, w, 4), fullgraph=True, backend="aot_eager")
    x = compiled(z)
    x.sin().sum().backward()
    assert max(expansion_errors(z, w, x).values()) < 1e-13 and z.grad.isfinite().all()


def test_no_tensor_of_another_mode_is_kept():
    "After calls without storage or without autograd, the next call is an ordinary one."
    z, w = unit(5, 9).requires_grad_(), unit(5, 9, seed=1)
    with torch._subclasses.FakeTensorMode():
        assert expand(torch.zeros(5, 9), torch.zeros(5, 9), 4).shape == (5, 4, 9)
    with torch.inference_mode():
        expand(z, w, 4)
    expand(z, w, 4).sin().sum().backward()
    assert z.grad.isfinite().all()


def test_wrong_input_is_named():
    z, w = unit(4, 8), unit(4, 8)
    for call, words in (
        (lambda: expand(z, w.float(), 4), "one precision .*float64 .* and torch.float32"),
        (lambda: expand(z.half(), w, 4), "one precision .*float16 .* and torch.float64"),
        (lambda: expand(z, w.to("meta"), 4), "one device, got .* on cpu and .* on meta"),
        (lambda: expand(z, w, 8), "an embedding size of at least 9"),
    ):
        with pytest.raises(SeeError, match=words):
            call()


def test_half_precision_keeps_its_largest_error_at_rounding():
    torch.manual_seed(0)
    z, w = (F.normalize(torch.randn(64, 128), dim=-1) for _ in range(2))
    for dtype in (torch.float16, torch.bfloat16):
        rough = z.to(dtype), w.to(dtype)
        exact = expand(*(rows.float() for rows in rough), 8, generator=seeded(1))
        half = expand(*rough, 8, generator=seeded(1))
        assert (half.float() - exact).abs().max() <= torch.finfo(dtype).eps


def test_no_unit_vectors_are_further_apart_than_the_centers():
    torch.manual_seed(0)
    for n in (3, 5, 9):
        best = (mmd_centers(n) @ mmd_centers(n).T).fill_diagonal_(-1).max()
        tries = F.normalize(torch.randn(2000, n, n - 1), dim=-1)
        cosines = (tries @ tries.mT).masked_fill(torch.eye(n, dtype=torch.bool), -1).amax((1, 2))
        assert cosines.min() >= best - 1e-6


@settings(max_examples=40)
@given(st.integers(2, 30), st.integers(0, 1000), st.floats(0.0, 1.0), st.booleans())
def test_the_second_term_is_the_loss_of_the_synthetics(batch, seed, fraction, encoder_grad):
    "The lean way equals a plain second call of the library's loss, in value and in both gradients."
    torch.manual_seed(seed)
    loss, labels = losses.ProxyAnchorLoss(7, 12), torch.randint(0, 7, (batch,))
    x, options = torch.randn(batch, 12).requires_grad_(), {"encoder_grad": encoder_grad}
    see = SEELoss(loss, 5, 0.7, fraction=fraction, generator=seeded(seed), **options)
    value = see(x, labels)
    see.generator.manual_seed(seed)
    synthetics, targets = see.expand_batch(x, labels)
    expected = loss(x, labels) + (0.7 * loss(synthetics, targets) if len(targets) else 0)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    both = (torch.autograd.grad(v, [x, loss.proxies]) for v in (value, expected))
    for a, b in zip(*both):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
