"""CharEncoder: against a loop over positions, padding, sparse against dense gradients, dropout of pairs, messages."""

import copy

import pytest
import torch
import torch.nn.functional as F
from contract import CHECKS, Row, check_compile
from torch import Tensor, nn

from danlu.text import CharEncoder, CharVocab

SIZES = dict(num_tokens=9, num_bigrams=11, dim=4, char_dim=3, bigram_dim=2, dilations=(1, 2))
IDS = torch.tensor([[7, 8, 1, 7, 8], [8, 2, 7, 0, 0]])
PAIRS = torch.tensor([[2, 3, 1, 10, 4], [5, 1, 2, 0, 0]])
MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


def build(**changes) -> CharEncoder:
    torch.manual_seed(0)
    return CharEncoder(**{**SIZES, **changes}).double().eval()


def by_hand(encoder: CharEncoder, ids: list[int], pairs: list[int]) -> Tensor:
    """Oracle: eq. (1) to (3) position by position on one text without padding."""
    char, pair = encoder.char_embedding.weight, encoder.bigram_embedding.weight
    nothing = torch.zeros(pair.shape[1], dtype=pair.dtype)
    x = []
    for i in range(len(ids)):
        right = pair[pairs[i + 1]] if i + 1 < len(ids) else nothing
        x.append(encoder.project.weight @ torch.cat([char[ids[i]], pair[pairs[i]], right]) + encoder.project.bias)
    for layer in encoder.dgcnn.layers:
        weight, bias, r = layer.conv.weight, layer.conv.bias, layer.dilation
        y = []
        for i in range(len(x)):
            both = bias.clone()
            for tap in range(3):
                j = i + (tap - 1) * r
                if 0 <= j < len(x):
                    both = both + weight[:, :, tap] @ x[j]
            candidate, gate = both.chunk(2)
            gate = gate.sigmoid()
            y.append(x[i] * (1 - gate) + candidate * gate)
        x = y
    return torch.stack(x)


def test_equals_a_loop_over_positions():
    encoder = build()
    out = encoder(IDS, PAIRS, MASK)
    torch.testing.assert_close(out[0], by_hand(encoder, IDS[0].tolist(), PAIRS[0].tolist()))
    torch.testing.assert_close(out[1, :3], by_hand(encoder, [8, 2, 7], [5, 1, 2]))
    torch.testing.assert_close(encoder(IDS[:1], PAIRS[:1]), out[:1])


def test_what_stands_at_masked_positions_has_no_influence():
    encoder = build()
    mask = torch.tensor([[True, True, False, True, True], [True, True, True, False, False]])
    ids, pairs = IDS.clone(), PAIRS.clone()
    ids[~mask], pairs[~mask] = -100, 10**9  # not even rows of the tables
    out = encoder(ids, pairs, mask)
    torch.testing.assert_close(out, encoder(IDS, PAIRS, mask), rtol=0, atol=0)
    assert (out[~mask] == 0).all()


def test_every_pair_reaches_both_its_characters_and_no_third():
    encoder = build(dilations=(1,))
    encoder.dgcnn = nn.Identity()
    encoder.dgcnn.forward = lambda x, mask: x  # type: ignore[method-assign]
    other = PAIRS.clone()
    other[0, 2] = 6
    changed = (encoder(IDS, PAIRS) - encoder(IDS, other)).abs().sum(-1) > 0
    assert changed[0].tolist() == [False, True, True, False, False]


def test_without_pairs_only_characters_count():
    encoder = build(num_bigrams=0)
    assert encoder(IDS, mask=MASK).shape == (2, 5, 4)
    assert list(encoder.sparse_parameters()) == []
    assert encoder.project.in_features == SIZES["char_dim"]


def test_sparse_gradients_are_the_dense_ones():
    dense, sparse = build(sparse=False), build()
    weight = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for encoder in (dense, sparse):
        (encoder(IDS, PAIRS, MASK) * weight).sum().backward()
    expected = dict(dense.named_parameters())
    for name, parameter in sparse.named_parameters():
        assert parameter.grad.is_sparse == (name == "bigram_embedding.weight")
        torch.testing.assert_close(parameter.grad.to_dense(), expected[name].grad)
    touched = sparse.bigram_embedding.weight.grad.coalesce().indices()[0].tolist()
    assert touched == [1, 2, 3, 4, 5, 10]  # never the padding


def test_gradient_is_that_of_finite_differences():
    encoder = build(sparse=False)

    def out(char, pair):
        tables = {"char_embedding.weight": char, "bigram_embedding.weight": pair}
        return torch.func.functional_call(encoder, tables, (IDS, PAIRS, MASK))

    tables = [t.weight.detach().clone().requires_grad_() for t in (encoder.char_embedding, encoder.bigram_embedding)]
    tables = [t[1:].detach().clone().requires_grad_() for t in tables]  # row 0 has no gradient by design
    assert torch.autograd.gradcheck(lambda c, p: out(F.pad(c, (0, 0, 1, 0)), F.pad(p, (0, 0, 1, 0))), tables)


def test_parameters_are_parted_without_loss():
    for encoder in (build(), build(sparse=False), build(num_bigrams=0)):
        sparse, dense = list(encoder.sparse_parameters()), list(encoder.dense_parameters())
        assert len(sparse) + len(dense) == len(list(encoder.parameters()))
        assert not {id(p) for p in sparse} & {id(p) for p in dense}
    assert [p.shape for p in build().sparse_parameters()] == [(11, 2)]


def test_untouched_rows_stay_bit_for_bit():
    encoder = build().train()
    before = copy.deepcopy(encoder.state_dict())
    optimizers = [torch.optim.AdamW(encoder.dense_parameters()), torch.optim.SparseAdam(encoder.sparse_parameters())]
    encoder.bigram_dropout = 0.0
    for _ in range(2):
        encoder(IDS, PAIRS, MASK).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    moved = (encoder.bigram_embedding.weight != before["bigram_embedding.weight"]).any(1)
    assert moved.nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5, 10]
    assert (encoder.char_embedding.weight[0] == 0).all()
    assert (encoder.bigram_embedding.weight[0] == 0).all()


def test_dropped_pairs_become_unknown_on_both_sides_at_the_stated_rate():
    encoder = build(dilations=(1,), bigram_dropout=0.25, dropout=0.0).train()
    encoder.dgcnn = nn.Identity()
    encoder.dgcnn.forward = lambda x, mask: x  # type: ignore[method-assign]
    n = 4000
    ids, pairs = torch.full((1, n), 7), torch.full((1, n), 5)
    mask = torch.ones(1, n, dtype=torch.bool)
    with torch.no_grad():
        encoder.char_embedding.weight.zero_()
        encoder.bigram_embedding.weight.zero_()
        encoder.bigram_embedding.weight[1] = 1.0
        encoder.project.weight.copy_(torch.eye(4, 7, dtype=torch.float64).roll(3, dims=1))  # out = [left, right]
        encoder.project.bias.zero_()
        out = encoder(ids, pairs, mask)[0]
    left, right = out[:, 0], out[:, 2]
    assert (left[1:] == right[:-1]).all()
    assert abs(left.mean().item() - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    assert (encoder.eval()(ids, pairs, mask) == 0).all()


def test_padding_is_not_dropped_to_unknown():
    encoder = build(bigram_dropout=0.9, dropout=0.0).train()
    encoder(IDS[1:], PAIRS[1:] * 0, torch.zeros(1, 5, dtype=torch.bool)).sum().backward()
    assert encoder.bigram_embedding.weight.grad.coalesce().values().abs().sum() == 0


def test_dropout_drops_and_scales_in_training_only():
    encoder = build(dropout=0.25)
    encoder.dgcnn = nn.Identity()
    encoder.dgcnn.forward = lambda x, mask: x  # type: ignore[method-assign]
    plain = encoder(IDS, PAIRS)
    assert torch.equal(encoder(IDS, PAIRS), plain)
    ids, pairs = IDS.repeat(100, 1), PAIRS.repeat(100, 1)
    ratio = encoder.train()(ids, pairs) / plain.repeat(100, 1, 1)
    dropped = ratio == 0
    torch.testing.assert_close(ratio[~dropped], torch.full_like(ratio[~dropped], 1 / 0.75))
    assert abs(dropped.double().mean().item() - 0.25) < 4 * (0.25 * 0.75 / ratio.numel()) ** 0.5


def test_gate_dropout_reaches_every_layer():
    assert [layer.gate_dropout for layer in build(gate_dropout=0.3).dgcnn.layers] == [0.3, 0.3]
    encoder = build(gate_dropout=0.0).train()
    assert torch.equal(encoder(IDS, PAIRS, MASK), encoder(IDS, PAIRS, MASK))  # nothing else draws by default


def test_reads_what_the_vocabulary_writes():
    vocab = CharVocab.build(["北京北京", "我爱北京"], min_count=1)
    ids, pairs = vocab.encode(["北京", "我爱九"])
    encoder = CharEncoder(len(vocab), vocab.num_bigrams, dim=4).eval()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    padded = [nn.utils.rnn.pad_sequence(x, batch_first=True) for x in (ids, pairs)]
    together = encoder(*padded, mask)
    torch.testing.assert_close(together[:1, :2], encoder(ids[0][None], pairs[0][None]))


def test_pairs_tell_apart_what_characters_cannot():
    """The reason for the table: a tag that depends on the pair alone, with no convolution to see the neighbour."""
    torch.manual_seed(0)
    encoder = CharEncoder(9, 6, dim=8, dilations=(1,), dropout=0.0, bigram_dropout=0.0)
    with torch.no_grad():
        encoder.dgcnn.layers[0].conv.weight[:, :, [0, 2]] = 0  # the convolution sees one position
    encoder.dgcnn.requires_grad_(False)
    out = nn.Linear(8, 2)
    left, right = torch.randint(0, 2, (2, 64, 1))
    ids = torch.cat([left, right], 1) + 7
    pairs = torch.cat([torch.ones_like(left), 2 * left + right + 2], 1)
    target = (left ^ right)[:, 0]
    optimizers = [
        torch.optim.Adam([*encoder.dense_parameters(), *out.parameters()], lr=0.05),
        torch.optim.SparseAdam(encoder.sparse_parameters(), lr=0.05),
    ]
    for _ in range(60):
        loss = F.cross_entropy(out(encoder(ids, pairs)[:, 1]), target)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert loss < 0.1  # characters alone: the exclusive or is learnable from neither


ROWS = [
    Row("CharEncoder", lambda: CharEncoder(**SIZES), lambda dtype: (IDS, PAIRS, MASK), (2, 5, 4), no_compile="sparse"),
    Row("CharEncoder[dense]", lambda: CharEncoder(**SIZES, sparse=False), lambda dtype: (IDS, PAIRS, MASK), (2, 5, 4)),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_contract(row, check):
    if check is check_compile and row.no_compile:
        pytest.skip("torch.compile cannot trace a sparse gradient")
    check(row)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CharEncoder(1), "num_tokens must be at least 2 .* got 1 and 0.*len\\(vocab\\)"),
        (lambda: CharEncoder(9, 1), "got 9 and 1; rows 0 and 1"),
        (lambda: CharEncoder(9, dim=0), "at least 1, got 0, 128, 64"),
        (lambda: CharEncoder(9, dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0; 0 switches it off"),
        (lambda: CharEncoder(9, bigram_dropout=-0.1), r"bigram_dropout must lie in \[0, 1\), got -0.1"),
        (lambda: CharEncoder(9, gate_dropout=1.0), r"gate_dropout must lie in \[0, 1\), got 1.0"),
        (lambda: build()(IDS[0], PAIRS[0]), r"ids must be \(batch, positions\), got \(5,\).*ids\[None\]"),
        (lambda: build()(IDS), "has a pair table and needs bigram_ids; CharVocab.encode"),
        (lambda: build(num_bigrams=0)(IDS, PAIRS), "has no pair table, but bigram_ids were given"),
        (lambda: build()(IDS, PAIRS[:, :4]), r"bigram_ids must be \(2, 5\) like ids, got \(2, 4\)"),
        (lambda: build()(IDS, PAIRS, MASK.long()), r"mask must be bool \(2, 5\).*got torch.int64.*mask.bool\(\)"),
        (lambda: build()(IDS, PAIRS, MASK[:, :4]), r"mask must be bool \(2, 5\).*got torch.bool \(2, 4\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
