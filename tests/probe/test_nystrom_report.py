"""Reports of Nyström attention: each number by hand, inputs of layers by hooks, whole models."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.nn import MultiHeadAttention, NystromAttention, nystrom_factors
from danlu.probe import attention_inputs, nystrom_report
from danlu.text.config import TransformerConfig
from danlu.text.transformer import build_transformer

Q, K, V = torch.randn(3, 2, 2, 20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KEEP = torch.stack([torch.arange(20) < 20, torch.arange(20) % 3 != 1])


@pytest.mark.parametrize("pinv", ["auto", "exact", 3, 1e-9])
def test_every_number_by_hand(pinv):
    report = nystrom_report(Q, K, V, KEEP, num_landmarks=5, pinv=pinv)
    for b, keep in enumerate(KEEP):
        q, k, v = (x[b : b + 1, :, keep] for x in (Q, K, V))
        left, middle, right = nystrom_factors(q, k, 5, pinv=pinv)
        weights, exact = left @ middle @ right, F.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(
            report.error[b], (weights @ v - exact).flatten(2).norm(dim=2)[0] / exact.flatten(2).norm(dim=2)[0]
        )
        torch.testing.assert_close(report.row_error[b], (weights.sum(3) - 1).abs().amax(2)[0])
        torch.testing.assert_close(report.negative_mass[b], weights.clamp(max=0).abs().sum(3).mean(2)[0])
        n = int(keep.sum())
        segment = torch.arange(n) * 5 // n
        ql, kl = (torch.stack([x[0][:, segment == j].mean(1) for j in range(5)], 1) for x in (q, k))
        a = (ql @ kl.mT / 2).softmax(2)
        torch.testing.assert_close(report.condition[b], torch.linalg.cond(a))
        torch.testing.assert_close(
            report.residual[b], torch.linalg.matrix_norm(torch.eye(5) - a @ middle[0]), atol=1e-9, rtol=1e-6
        )
    if pinv == 3:
        assert (report.steps == 3).all()
    if pinv == "exact":
        assert (report.steps == -1).all()


def test_no_more_tokens_than_landmarks_has_no_error():
    report = nystrom_report(Q, K, V, KEEP, num_landmarks=15)  # 20 tokens and 13
    assert (report.error[0] > 1e-6).all()
    assert (report.error[1] < 1e-12).all()
    assert (report.condition[1] == 1).all()
    assert (nystrom_report(Q, K, V, num_landmarks=64).error < 1e-12).all()


def test_nothing_but_padding():
    report = nystrom_report(Q, K, V, torch.zeros(2, 20, dtype=torch.bool), num_landmarks=5)
    assert not report.error.any()
    assert report.residual.isfinite().all()


def test_it_prints():
    lines = str(nystrom_report(Q, K, V, num_landmarks=5)).splitlines()
    assert lines[0].split() == ["median", "worst"]
    assert [line[:13].strip() for line in lines[1:]] == [
        "condition", "residual", "steps", "row error", "negative mass", "error"
    ]  # fmt: skip


def test_alike_neighbours_err_less_than_independent_tokens():
    free = torch.randn(1, 2, 64, 8, generator=torch.Generator().manual_seed(1))
    alike = free[:, :, :16].repeat_interleave(4, 2) + 0.05 * free
    errors = [nystrom_report(x, x, x, num_landmarks=16).error.max() for x in (alike, free)]
    assert errors[0] < 0.2 * errors[1]


@pytest.mark.parametrize("family", ["bert", "roformer"])
def test_inputs_of_a_model_give_its_attention(family):
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 20}
    model = build_transformer(TransformerConfig.of(family, **sizes)).double().eval()
    ids = torch.randint(1, 30, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[1, 6:] = 0
    outputs = {}
    for name, module in model.named_modules():
        if isinstance(module, MultiHeadAttention):
            module.output.register_forward_pre_hook(lambda m, given, name=name: outputs.__setitem__(name, given[0]))
    found = attention_inputs(model, ids, mask=ids != 0, pack=False)
    assert list(found) == ["layers.0.attention", "layers.1.attention"]
    for name, inputs in found.items():
        keep = inputs.mask[:, None, None, :]
        output = F.scaled_dot_product_attention(inputs.query, inputs.key, inputs.value, keep, scale=inputs.scale)
        expected = outputs[name].unflatten(0, (2, 9))
        torch.testing.assert_close(output.transpose(1, 2).flatten(2)[ids != 0], expected[ids != 0])
        assert nystrom_report(*inputs, num_landmarks=9).error.max() < 1e-9
    packed = attention_inputs(model, ids)["layers.0.attention"]
    assert packed.query.shape == (1, 2, 9, 8)  # the longest
    assert all(not module._forward_pre_hooks for n, module in model.named_modules() if n.endswith(".attention"))


@pytest.mark.parametrize("name", ["torch", "danlu"])
def test_inputs_of_torchs_layers(name):
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, dtype=torch.float64)
    if name == "danlu":
        block.self_attn = NystromAttention.from_attention(block.self_attn, 3)
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    keep = torch.arange(10) < torch.tensor([[10], [7]])
    inputs = attention_inputs(block, x, src_key_padding_mask=~keep)["self_attn"]
    assert torch.equal(inputs.mask, keep)
    q = F.linear(x, block.self_attn.in_proj_weight, block.self_attn.in_proj_bias)[..., :8]
    torch.testing.assert_close(inputs.query.transpose(1, 2).flatten(2), q)


def test_messages():
    with pytest.raises(ValueError, match="got 20 queries and 9 keys"):
        nystrom_report(Q, K[:, :, :9], V[:, :, :9])
    with pytest.raises(ValueError, match="no layer of self-attention was called"):
        attention_inputs(nn.Linear(2, 2), torch.ones(1, 2))
