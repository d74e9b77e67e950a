"""Masking: shares, whole words, the 80/10/10 split within 4 standard errors, special tokens, determinism, messages."""

import math

import pytest
import torch

from danlu.text.masking import mask_words

SPECIAL, MASK, V = torch.tensor([0, 1, 2, 3, 4]), 4, 200


def batch(rows=64, length=64, seed=0, word=0.6):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, V, (rows, length), generator=g)
    ids[:, 0], ids[:, -1], ids[:, 20] = 2, 3, 3
    return ids, torch.rand(rows, length, generator=g) < word


def masked(ids, begins, seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    return mask_words(ids, begins, mask_id=MASK, special=SPECIAL, vocab_size=V, generator=g, **options)


def words_of(ids, begins):  # oracle: runs of positions by a scalar loop
    found = []
    for r in range(len(ids)):
        for t in range(ids.shape[1]):
            if ids[r, t] in SPECIAL:
                continue
            if t == 0 or begins[r, t] or ids[r, t - 1] in SPECIAL:
                found.append([])
            found[-1].append((r, t))
    return found


def test_words_are_chosen_whole_and_no_more_than_wanted():
    ids, begins = batch(8, 40)
    for seed in range(20):
        _, chosen = masked(ids, begins, seed)
        words = words_of(ids, begins)
        for word in words:
            assert len({bool(chosen[place]) for place in word}) == 1
        wanted = round(0.15 * sum(map(len, words)))
        assert wanted - max(map(len, words)) < int(chosen.sum()) <= wanted


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 1.0])
def test_share(share):
    ids, _ = batch()
    ordinary = int((~torch.isin(ids, SPECIAL)).sum())
    assert int(masked(ids, None, share=share)[1].sum()) == round(share * ordinary)  # words of one token fit exactly


def test_special_tokens_stay_and_part_words():
    ids, begins = batch()
    hidden, chosen = masked(ids, torch.zeros_like(begins), share=1.0)
    special = torch.isin(ids, SPECIAL)
    assert torch.equal(chosen, ~special) and torch.equal(hidden[special], ids[special])
    _, chosen = masked(ids[:1], torch.zeros_like(begins[:1]), share=0.5)  # two words: places 1-19 and 21-62
    assert chosen[0, 1:20].all() or not chosen[0, 1:20].any()


def test_eighty_ten_ten_within_four_standard_errors():
    ids, begins = batch(400, 128)
    hidden, chosen = masked(ids, begins)
    n = int(chosen.sum())
    assert torch.equal(hidden[~chosen], ids[~chosen])
    to_mask = float((hidden[chosen] == MASK).sum()) / n
    kept = float((hidden[chosen] == ids[chosen]).sum()) / n
    luck = 0.1 / (V - 5)  # a random token may be the old one
    for share, expected in ((to_mask, 0.8), (kept, 0.1 + luck), (1 - to_mask - kept, 0.1 - luck)):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_every_position_and_every_random_token_is_equally_likely():
    ids = torch.full((200, 32), 7)
    counts, drawn = torch.zeros(32), torch.zeros(V)
    for seed in range(60):
        hidden, chosen = masked(ids, None, seed)
        counts += chosen.float().sum(0)
        drawn += torch.bincount(hidden[chosen & (hidden != MASK) & (hidden != 7)], minlength=V)
    p = counts / 12_000
    assert (p - 0.15).abs().max() < 4.5 * math.sqrt(0.15 * 0.85 / 12_000)  # 32 positions looked at
    assert drawn[:5].sum() == 0
    mean = drawn[5:].sum() / (V - 6)
    others = torch.cat([drawn[5:7], drawn[8:]])
    assert (others - mean).abs().max() < 5 * mean.sqrt() and (others > 0).all()


def test_long_and_short_words_are_chosen_alike():
    ids = torch.full((300, 60), 9)
    begins = torch.zeros(300, 60, dtype=torch.bool)
    begins[:, [0, 1, 2, 3, *range(4, 60, 4)]] = True  # four words of one token, fourteen of four
    rate = torch.zeros(2)
    for seed in range(10):
        _, chosen = masked(ids, begins, seed)
        rate += torch.stack([chosen[:, :4].float().mean(), chosen[:, 4:].float().mean()]) / 10
    assert abs(rate[0] - rate[1]) < 4 * math.sqrt(0.15 * 0.85 * (1 / 12_000 + 1 / 42_000))


def test_same_generator_same_choice_and_nothing_global_moves():
    ids, begins = batch()
    before, kept = torch.get_rng_state(), (ids.clone(), begins.clone())
    a, b, c = masked(ids, begins, 1), masked(ids, begins, 1), masked(ids, begins, 2)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[1], c[1])
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(kept[0], ids) and torch.equal(kept[1], begins)


def test_messages():
    ids, begins = batch(2, 22)
    with pytest.raises(ValueError, match=r"got \(2, 22\) and \(22,\)"):
        masked(ids, begins[0])
    with pytest.raises(ValueError, match=r"lies in \[0, 1\], got 15"):
        masked(ids, begins, share=15)
    with pytest.raises(ValueError, match="all 5 ids are special"):
        mask_words(ids.clamp(max=4), None, mask_id=4, special=SPECIAL, vocab_size=5)
