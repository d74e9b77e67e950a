"""Corrupted decoder inputs: rates, pools, what must stay, draws by hand, the toy of the post, messages."""

import itertools
import math

import pytest
import torch

from danlu.text import FunctionSteps, beam_search
from danlu.train import corrupt_targets, gold_share, sampled_inputs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(number, length=12):
    """Source of 4 tokens 10 to 13, a start token 1, `length` target tokens with ids of their own, padding 0."""
    ids = torch.tensor([[10, 11, 12, 13, 1, *range(20, 20 + length), 0, 0]]).repeat(number, 1)
    target = (ids >= 20).clone()
    return ids, target, ids > 0


def test_half_of_the_rows_and_a_share_of_their_tokens_change():
    ids, target, _ = rows(20_000)
    changed = corrupt_targets(ids, target, generator=generator()) != ids
    # a draw gives the token itself once in 12 times; a touched row stays whole with (1 - 0.3 * 11 / 12) ** 12
    rate = 0.3 * 11 / 12
    touched = 0.5 * (1 - (1 - rate) ** 12)
    error = 4 * math.sqrt(0.25 / 20_000)
    assert changed.any(1).float().mean() == pytest.approx(touched, abs=error)
    assert changed[target].float().mean() == pytest.approx(0.5 * rate, abs=error)
    within = changed[changed.any(1)][:, target[0]].float().mean()  # tokens of a row are touched together or not at all
    assert within == pytest.approx(0.5 * rate / touched, abs=error)
    assert not changed[~target].any()


@pytest.mark.parametrize("pool", ["target", "sequence", "vocab", "model"])
def test_draws_come_from_the_pool_and_from_all_of_it(pool):
    ids, target, mask = rows(400, length=3)
    proposals = torch.full_like(ids, 77)
    out = corrupt_targets(ids, target, 1.0, 1.0, pool, mask, 30, proposals, generator())
    seen = set(out[target].tolist())
    assert seen == {
        "target": {20, 21, 22}, "sequence": {1, 10, 11, 12, 13, 20, 21, 22}, "vocab": set(range(30)), "model": {77},
    }[pool]  # fmt: skip
    assert torch.equal(out[~target], ids[~target])


def test_draws_of_the_target_pool_are_uniform_over_places():
    ids = torch.tensor([[5, 5, 5, 9]]).repeat(8_000, 1)
    out = corrupt_targets(ids, torch.ones_like(ids).bool(), 1.0, 1.0, generator=generator())
    assert (out == 9).float().mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / 32_000))


def test_each_row_draws_from_itself():
    ids = torch.arange(40).reshape(8, 5)
    target = torch.tensor([[False, True, True, False, True]]).repeat(8, 1)
    out = corrupt_targets(ids, target, 1.0, 1.0, generator=generator())
    for row, old, keep in zip(out, ids, target, strict=True):
        assert set(row[keep].tolist()) <= set(old[keep].tolist())


def test_shares_of_zero_and_targets_of_none_change_nothing():
    ids, target, _ = rows(50)
    assert torch.equal(corrupt_targets(ids, target, p_sequence=0.0, generator=generator()), ids)
    assert torch.equal(corrupt_targets(ids, target, p_token=0.0, generator=generator()), ids)
    assert torch.equal(corrupt_targets(ids, torch.zeros_like(target), 1.0, 1.0, generator=generator()), ids)
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert corrupt_targets(empty, empty.bool()).shape == (0, 3)


def test_the_same_generator_gives_the_same_draws_and_leaves_torchs_own_alone():
    ids, target, _ = rows(50)
    before, given = torch.get_rng_state(), ids.clone()
    one = corrupt_targets(ids, target, generator=generator(7))
    assert torch.equal(one, corrupt_targets(ids, target, generator=generator(7)))
    assert not torch.equal(one, corrupt_targets(ids, target, generator=generator(8)))
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(ids, given)


def test_sampled_inputs_follow_the_logits_before_them():
    probabilities = torch.tensor([[[0.2, 0.8, 0.0], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]]).repeat(20_000, 1, 1)
    ids = torch.tensor([[9, 8, 7]]).repeat(20_000, 1)
    out = sampled_inputs(probabilities.log(), ids, generator=generator())
    assert (out[:, 0] == 9).all()  # nothing stands before it
    error = 4 * math.sqrt(0.25 / 20_000)
    assert (out[:, 1] == 1).float().mean() == pytest.approx(0.8, abs=error)
    assert (out[:, 2] == 2).float().mean() == pytest.approx(0.5, abs=error)
    cold = sampled_inputs(probabilities.log(), ids, temperature=1e-3, generator=generator())
    assert (cold[:, 1] == 1).all()
    single = torch.tensor([[4]])
    assert torch.equal(sampled_inputs(torch.zeros(1, 1, 3), single), single)


def test_gold_share_is_half_at_k_log_k_and_never_overflows():
    assert gold_share(round(50 * math.log(50)), 50.0) == pytest.approx(0.5, abs=0.01)
    shares = [gold_share(step, 50.0) for step in range(0, 1000, 50)]
    assert shares == sorted(shares, reverse=True) and shares[0] == pytest.approx(50 / 51)
    assert 0 <= gold_share(10**9, 50.0) < 1e-200


def test_what_it_is_against_a_larger_beam_is_worse_than_a_smaller_one():
    """The two steps of the post: trained so that every gold prefix is followed rightly, the search still goes wrong."""
    first, second = {0: 0.6, 2: 0.4}, {0: {1: 0.55, 3: 0.45}, 2: {1: 0.1, 3: 0.9}}  # a, c; then b, d

    def logits(ids):
        table = torch.full((len(ids), 6), 1e-9)
        for row, last in enumerate(ids[:, -1].tolist()):
            for token, p in (first if last == 5 else second.get(last, {4: 1.0})).items():
                table[row, token] = p
        return table.log()

    def search(beams):
        found = beam_search(FunctionSteps(logits, [[5]]), end_id=4, num_beams=beams, max_new_tokens=2,
                            length_penalty=0.0, early_stopping=True)  # fmt: skip
        return found.best()[0], found.scores.exp().item()

    all_texts = {(a, b): p * q for a, p in first.items() for b, q in second[a].items()}
    assert search(1) == ([0, 1], pytest.approx(0.33)) and search(2) == ([2, 3], pytest.approx(0.36))
    assert max(all_texts, key=all_texts.get) == (2, 3) and sum(all_texts.values()) == pytest.approx(1)


def test_a_model_of_corrupted_prefixes_doubts_what_never_followed():
    """A chain a -> b -> a ...: the exact optimum on exchanged inputs is less sure than the chain after any prefix."""
    text = torch.tensor([0, 1, 0, 1, 0, 1])
    pairs = torch.zeros(2, 2)
    for seed in range(400):
        inputs = corrupt_targets(text[None, :-1], torch.ones(1, 5, dtype=torch.bool), generator=generator(seed))[0]
        for before, after in itertools.zip_longest(inputs.tolist(), text[1:].tolist()):
            pairs[before, after] += 1  # labels stay the original tokens
    learned = pairs / pairs.sum(1, keepdim=True)
    assert learned[0, 1] == pytest.approx(1 - 0.15 * 2 / 5, abs=0.04)  # 0 in place of 1: 15 % of 2, drawn 3 times of 5
    assert learned[0, 0] > 0.02 and learned[1, 1] > 0.02


def test_the_optimum_of_a_chain_is_drawn_toward_its_marginal():
    """A cycle of five states: p(next | input) of corrupted training is 0.85 of the chain's and 0.15 of the marginal."""
    text = torch.arange(11) % 5
    inputs = corrupt_targets(
        text[:-1].repeat(40_000, 1), torch.ones(40_000, 10, dtype=torch.bool), generator=generator()
    )
    pairs = torch.zeros(5, 5).index_put_((inputs, text[1:].expand(40_000, 10)), torch.ones(()), accumulate=True)
    learned = pairs / pairs.sum(1, keepdim=True)
    chain = torch.eye(5).roll(1, 1)  # one state after the other
    expected = 0.85 * chain + 0.15 / 5  # share of exchanged inputs 0.5 * 0.3, of every token alike
    # corruption comes by whole rows, which the count of pairs does not tell: rows are the sample, 10 pairs each
    assert (learned - expected).abs().max() < 4 * math.sqrt(0.13 / 40_000)
    clean = corrupt_targets(text[None, :-1], torch.ones(1, 10, dtype=torch.bool), p_token=0.0)
    assert torch.equal(clean[0], text[:-1])  # where no input is exchanged the chain stays the optimum


def test_gradients_reach_the_replacement_and_not_the_original():
    ids = torch.tensor([[1, 5, 6]])
    target = torch.tensor([[False, True, False]])
    noisy = corrupt_targets(ids, target, 1.0, 1.0, "model", proposals=torch.tensor([[9, 9, 9]]))
    table = torch.zeros(10, 2, requires_grad=True)
    (table[noisy] * torch.tensor([1.0, 2.0])).sum().backward()
    assert table.grad[9].tolist() == [1.0, 2.0] and not table.grad[5].any()
    assert table.grad[1].any() and table.grad[6].any()


def test_labels_and_loss_of_a_plain_loop():
    """Eq. (3): the loss of exchanged inputs against the labels that were there before; the model learns them."""
    torch.manual_seed(0)
    text, words = torch.tensor([[1, 4, 2, 3, 5]]).repeat(32, 1), torch.ones(32, 4, dtype=torch.bool)
    words[:, 0] = False  # the start token
    model = torch.nn.Sequential(torch.nn.Embedding(6, 8), torch.nn.Flatten(), torch.nn.Linear(32, 24))
    optimizer, g, labels = torch.optim.Adam(model.parameters(), lr=0.03), generator(), text[:, 1:].clone()
    for _ in range(60):
        optimizer.zero_grad()
        logits = model(corrupt_targets(text[:, :-1], words, generator=g)).view(32, 4, 6)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
    wrong = torch.tensor([[1, 2, 2, 2]])
    assert torch.equal(model(wrong).view(4, 6).argmax(1), labels[0]) and torch.equal(labels, text[:, 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": torch.ones(2, 3)},
            r"ids \(B, T\) and target \(B, T\) of bool; got \(2, 3\) and \(2, 3\) of torch.f",
        ),
        ({"target": torch.ones(3).bool()}, r"got \(2, 3\) and \(3,\)"),
        ({"p_token": 1.5}, r"p_token is a share and must lie in \[0, 1\], got 1.5"),
        ({"p_sequence": -0.1}, "p_sequence is a share"),
        ({"pool": "words"}, "pool must be one of target, sequence, vocab, model; got 'words'"),
        ({"pool": "sequence"}, "pool 'sequence' needs mask="),
        ({"pool": "vocab"}, "pool 'vocab' needs vocab_size="),
        ({"pool": "model"}, "pool 'model' needs proposals="),
        ({"pool": "model", "proposals": torch.ones(2, 4).long()}, r"proposals has shape \(2, 4\), ids \(2, 3\)"),
    ],
)
def test_messages(change, message):
    given = {"ids": torch.ones(2, 3).long(), "target": torch.ones(2, 3).bool(), **change}
    with pytest.raises(ValueError, match=message):
        corrupt_targets(**given)


def test_messages_of_the_others():
    with pytest.raises(ValueError, match=r"logits \(B, T, V\) of ids \(B, T\); got \(2, 3\) and \(2, 3\)"):
        sampled_inputs(torch.zeros(2, 3), torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        sampled_inputs(torch.zeros(1, 2, 3), torch.zeros(1, 2).long(), temperature=0)
    with pytest.raises(ValueError, match="k must be > 0, got 0"):
        gold_share(1, 0)
