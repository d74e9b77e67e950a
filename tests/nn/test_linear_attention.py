"""Linear attention: the kernel matrix written out, causal by its triangle, no underflow, FAVOR+ without bias."""

import pytest
import torch
import torch.nn.functional as F

from danlu.nn import elu_log_features, favor_log_features, linear_attention, orthogonal_projection


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOG_Q, LOG_K, V = drawn(2, 3, 37, 5), drawn(2, 3, 37, 5, seed=1), drawn(2, 3, 37, 4, seed=2)
KEEP = torch.stack([torch.arange(37) < 30, torch.arange(37) % 4 != 1])


def by_matrix(log_q, log_k, v, visible):
    """Eq. (1) with all weights side by side; rows without a key are 0."""
    weights = (log_q.exp() @ log_k.exp().mT) * visible
    return weights @ v / weights.sum(-1, keepdim=True).clamp_min(1e-300)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, KEEP])
@pytest.mark.parametrize("queries", [37, 20, 1])
def test_equals_the_kernel_matrix(causal, mask, queries):
    visible = torch.ones(queries, 37, dtype=torch.bool)
    if causal:
        visible = visible.tril(37 - queries)
    if mask is not None:
        visible = visible & mask[:, None, None, :]
    log_q = LOG_Q[:, :, -queries:]
    found = linear_attention(log_q, LOG_K, V, mask=mask, causal=causal)
    torch.testing.assert_close(found, by_matrix(log_q, LOG_K, V, visible))


@pytest.mark.parametrize("causal", [False, True])
def test_padding_and_neighbours_change_nothing(causal):
    noisy = [x.masked_fill(~KEEP[:, None, :, None], torch.nan) for x in (LOG_K, V)]
    together = linear_attention(LOG_Q, *noisy, mask=KEEP, causal=causal)
    for b, keep in enumerate(KEEP):
        alone = [x[b : b + 1, :, keep] for x in (LOG_Q, LOG_K, V)]
        torch.testing.assert_close(together[b : b + 1, :, keep], linear_attention(*alone, causal=causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_features_beyond_the_range_of_floats(causal, shift):
    """exp(shift) is 0 or inf; weights only depend on differences."""
    plain = linear_attention(LOG_Q.float(), LOG_K.float(), V.float(), causal=causal)
    moved = linear_attention(LOG_Q.float() + shift, LOG_K.float() - 2 * shift, V.float(), causal=causal)
    torch.testing.assert_close(moved, plain, rtol=0.01, atol=0.01)  # float32 near 1e4 has steps of 1e-3


def test_queries_and_keys_that_live_on_other_features():
    """Each side's largest feature is the other's smallest: the product of two underflowing factors is not 0 / 0."""
    log_q = torch.tensor([0.0, -300.0]).view(1, 1, 1, 2)
    log_k = torch.tensor([[-400.0, 0.0], [-401.0, -1.0]]).view(1, 1, 2, 2)
    value = torch.tensor([[1.0], [3.0]]).view(1, 1, 2, 1)
    weights = torch.tensor([-300.0, -301.0]).softmax(0)  # feature 1 decides
    expected = (weights * torch.tensor([1.0, 3.0])).sum()
    for causal in (False, True):
        assert linear_attention(log_q, log_k, value, causal=causal).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_no_later_key_is_felt(size):
    """Not even in the rounding: one step of the chunks' shifts that looks ahead would zero what came before."""
    changed_k, changed_v = LOG_K.clone(), V.clone()
    changed_k[:, :, 20:] = size * (1 + drawn(2, 3, 17, 5, seed=3).abs())
    changed_v[:, :, 20:] = 7
    before = linear_attention(LOG_Q, LOG_K, V, causal=True)
    after = linear_attention(LOG_Q, changed_k, changed_v, causal=True)
    assert torch.equal(before[:, :, :20], after[:, :, :20])
    assert (before[:, :, 20:] - after[:, :, 20:]).abs().amax(-1).min() > 1e-3


def test_no_key_to_see_gives_zeros():
    keep = KEEP.clone()
    keep[0] = False
    keep[1, :5] = False
    for causal in (False, True):
        inputs = [x.clone().requires_grad_() for x in (LOG_Q, LOG_K, V)]
        found = linear_attention(*inputs, mask=keep, causal=causal)
        assert not found[0].any()
        assert bool(found[1, :, :5].any()) is not causal
        found.sum().backward()
        assert all(x.grad.isfinite().all() for x in inputs)
    assert linear_attention(LOG_Q, LOG_K[:, :, :0], V[:, :, :0]).shape == (2, 3, 37, 4)
    assert linear_attention(LOG_Q[:, :, :0], LOG_K, V, causal=True).shape == (2, 3, 0, 4)


@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck(causal):
    inputs = [x[:1, :1, :18, :2].clone().requires_grad_() for x in (LOG_Q, LOG_K, V)]
    keep = torch.arange(18)[None] % 5 != 0

    def call(q, k, v):
        return linear_attention(q, k, v, mask=keep, causal=causal)

    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_and_autocast(causal):
    features = [elu_log_features(x.bfloat16()) for x in (LOG_Q, LOG_K)]
    assert features[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_attention(*features, V.bfloat16(), causal=causal)
    assert found.dtype == torch.bfloat16
    exact = linear_attention(*(x.double() for x in features), V.bfloat16().double(), causal=causal)
    torch.testing.assert_close(found.double(), exact, rtol=0.01, atol=0.01)


def test_elu_features():
    x = torch.tensor([-500.0, -1.0, 0.0, 2.0, 1e30], dtype=torch.float64, requires_grad=True)
    found = elu_log_features(x)
    torch.testing.assert_close(found[1:4].exp(), F.elu(x[1:4]) + 1)
    assert found[0] == -500
    found.sum().backward()
    torch.testing.assert_close(x.grad[:4], torch.tensor([1.0, 1.0, 1.0, 1 / 3]).double())
    assert torch.autograd.gradcheck(elu_log_features, torch.tensor([-2.0, 0.5]).double().requires_grad_())


@pytest.mark.parametrize("scale", [None, 1.0, 0.2])
def test_favor_estimates_the_softmax_kernel_without_bias(scale):
    q, k = 0.25 * drawn(4, 6, seed=4), 0.25 * drawn(5, 6, seed=5)
    generator = torch.Generator().manual_seed(6)
    estimates = []
    for _ in range(400):
        w = orthogonal_projection(12, 6, generator, torch.float64)
        estimates.append(favor_log_features(q, w, scale).exp() @ favor_log_features(k, w, scale).exp().T)
    estimates = torch.stack(estimates)
    exact = ((6**-0.5 if scale is None else scale) * q @ k.T).exp()
    error = estimates.std(0) / 400**0.5
    assert ((estimates.mean(0) - exact).abs() < 4.5 * error).all()  # 60 comparisons
    assert (error < 0.03 * exact).all()  # so that a wrong factor would show


def test_orthogonal_features_have_less_variance_than_independent_ones():
    q, k = drawn(1, 8, seed=7), drawn(1, 8, seed=8)
    generator = torch.Generator().manual_seed(9)

    def spread(draw):
        w = [draw() for _ in range(800)]
        products = [(favor_log_features(q, x, 0.3).exp() * favor_log_features(k, x, 0.3).exp()).sum() for x in w]
        return torch.stack(products).var()

    orthogonal = spread(lambda: orthogonal_projection(8, 8, generator, torch.float64))
    independent = spread(lambda: torch.randn(8, 8, dtype=torch.float64, generator=generator))
    assert orthogonal < 0.8 * independent


def test_rows_of_the_projection():
    w = orthogonal_projection(7, 3, torch.Generator().manual_seed(0), torch.float64)
    assert w.shape == (7, 3)
    for block in w.split(3):
        cosines = F.normalize(block) @ F.normalize(block).T
        torch.testing.assert_close(cosines, torch.eye(len(block)).double(), rtol=0, atol=1e-12)
    many = orthogonal_projection(30_000, 3, torch.Generator().manual_seed(1))
    assert many.mean(0).abs().max() < 4 * 30_000**-0.5
    torch.testing.assert_close(many.T @ many / 30_000, torch.eye(3), rtol=0, atol=4 * (2 / 30_000) ** 0.5)
    squares = many.square().sum(1)  # chi-squared with 3 degrees of freedom: mean 3, variance 6
    assert squares.mean().item() == pytest.approx(3, abs=4 * (6 / 30_000) ** 0.5)
    assert squares.var().item() == pytest.approx(6, abs=4 * (216 / 30_000) ** 0.5)
    state = torch.get_rng_state()
    again = orthogonal_projection(7, 3, torch.Generator().manual_seed(0), torch.float64)
    assert torch.equal(w, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_more_features_come_nearer_to_softmax_attention():
    q, k, v = (0.7 * drawn(1, 1, 30, 8, seed=s) for s in (10, 11, 12))
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = []
    for features in (64, 4096):
        w = orthogonal_projection(features, 8, torch.Generator().manual_seed(0), torch.float64)
        found = linear_attention(favor_log_features(q, w), favor_log_features(k, w), v)
        errors.append((found - exact).norm() / exact.norm())
    assert errors[1] < 0.35 * errors[0]  # an eighth is expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_attention(LOG_Q, LOG_K[..., :4], V), r"features \(B, H, T, M\).*got"),
        (lambda: linear_attention(LOG_Q[0], LOG_K[0], V[0]), "needs features"),
        (lambda: linear_attention(LOG_Q, LOG_K, V, mask=KEEP.int()), r"mask must be bool \(2, 37\).*got torch.int32"),
        (lambda: linear_attention(LOG_Q, LOG_K, V, mask=KEEP[:1]), r"got torch.bool \(1, 37\)"),
        (lambda: linear_attention(LOG_Q, LOG_K[:, :, :9], V[:, :, :9], causal=True), "got 37 queries and 9 keys"),
        (lambda: favor_log_features(LOG_Q, torch.ones(3, 4)), r"projection \(M, 5\).*got \(3, 4\)"),
        (lambda: favor_log_features(LOG_Q, torch.ones(3, 5), 0.0), "scale must be > 0"),
        (lambda: orthogonal_projection(0, 3), "sizes of at least 1, got 0 features of 3"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
