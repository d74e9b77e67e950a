"""Tokens over pieces: the table of the module by hand, round trips on random texts, windows that keep every step."""

import random
from itertools import pairwise

import pytest
import torch

from danlu.math.tag_scheme import spans, tags_from_spans
from danlu.tasks.encoder import open_encoder
from danlu.tasks.piece_steps import Aligned, StepWindows, align, step_tags, token_tags


def characters(text):
    return [(i, i + 1) for i, c in enumerate(text) if not c.isspace()]


def test_the_table_of_the_module():
    pieces = [(5, (0, 4)), (6, (4, 5)), (7, (5, 6)), (8, (7, 8))]
    found = align(characters("2020年北 京"), pieces)
    assert (found.first, found.starts, found.stops) == ([0, 1, 2, 3], [0, 4, 5, 6], [4, 5, 6, 7])
    word = align([(0, 10)], [(1, (0, 3)), (2, (3, 5)), (3, (5, 7)), (4, (7, 10))])
    assert word == Aligned(ids=[1, 2, 3, 4], first=[0], starts=[0], stops=[1])


def test_a_piece_that_goes_on_takes_the_next_token_in():
    found = align([(0, 2), (2, 3), (3, 4)], [(1, (0, 1)), (2, (1, 3)), (3, (3, 4))])  # "ab|c|d" over "a|bc|d"
    assert (found.first, found.starts, found.stops) == ([0, 2], [0, 2], [2, 3])


def test_tokens_without_a_piece_have_no_step_or_an_unknown_one():
    places, pieces = [(0, 1), (1, 2), (2, 3), (3, 4)], [(7, (0, 1)), (8, (2, 3))]
    without = align(places, pieces)
    assert (without.ids, without.starts) == ([7, 8], [0, 2])
    filled = align(places, pieces, unknown=1)
    assert (filled.ids, filled.first, filled.starts) == ([7, 1, 8, 1], [0, 1, 2, 3], [0, 1, 2, 3])


def test_spans_reach_over_blanks_that_have_no_piece():
    found = align([(i, i + 1) for i in range(5)], [(1, (0, 1)), (2, (2, 3)), (3, (4, 5))])  # tokens 1 and 3 are blanks
    assert found.to_steps([(0, 3, "A")]) == [(0, 2, "A")]
    assert found.to_tokens([(0, 2, "A")]) == [(0, 3, "A")]
    assert found.to_steps([(1, 2, "A")]) == []  # nothing but a blank
    assert token_tags(found, ["B-A", "I-A", "O"], "BIO", 5) == ["B-A", "I-A", "I-A", "O", "O"]


def test_spans_that_meet_in_a_piece():
    found = align([(0, 1), (1, 2), (2, 3)], [(1, (0, 2)), (2, (2, 3))])
    assert found.to_steps([(0, 1, "A"), (1, 3, "B")]) == [(0, 1, "A"), (1, 2, "B")]  # the second begins later
    assert found.to_steps([(0, 1, "A"), (1, 3, "B")], overlap=True) == [(0, 1, "A"), (0, 2, "B")]
    assert step_tags(found, ["B", "E", "S"], "BMES") == ["S", "S"]


@pytest.mark.parametrize("scheme", ["BIO", "BMES", "BIOES"])
@pytest.mark.parametrize("outside", [True, False])
def test_round_trip_where_every_token_is_a_piece(scheme, outside):
    stream = random.Random(3)
    for _ in range(100):
        size = stream.randint(1, 12)
        cuts = sorted({0, size, *(stream.randint(0, size) for _ in range(4))})
        gold = [(a, b, stream.choice("XY")) for a, b in pairwise(cuts)]
        gold = [s for s in gold if stream.random() < 0.6] if outside else gold
        tags = tags_from_spans(gold, size, scheme)
        found = align([(i, i + 1) for i in range(size)], [(9, (i, i + 1)) for i in range(size)])
        steps = step_tags(found, tags, scheme)
        assert steps == tags and token_tags(found, steps, scheme, size) == tags


def test_every_token_has_a_step_where_the_scheme_asks_for_it(tiny_encoder):
    tokenizer = open_encoder(tiny_encoder).tokenizer
    stream = random.Random(4)
    for _ in range(100):
        text = "".join(stream.choices("我们在北京2 0windows\u200b\u3000龘é\t", k=stream.randint(1, 30)))
        places = [(i, i + 1) for i in range(len(text))]
        ids, offsets = tokenizer.pieces(text)
        found = align(places, list(zip(ids, offsets, strict=True)), unknown=1)
        covered = [t for a, b in zip(found.starts, found.stops, strict=True) for t in range(a, b)]
        assert covered == list(range(len(text))), text
        assert found.first == sorted(set(found.first)) and found.first[-1] < len(found.ids)
        words = tags_from_spans([(0, len(text), "")], len(text), "BMES")
        assert token_tags(found, step_tags(found, words, "BMES"), "BMES", len(text)) == words


@pytest.mark.parametrize(("max_len", "context"), [(64, 0), (8, 0), (8, 2), (5, 1)])
def test_windows_hold_every_step_once_and_point_at_its_piece(tiny_encoder, max_len, context):
    encoder = open_encoder(tiny_encoder)
    texts = ["我们在北京windows20学习", "好", "", "windows windows2020 20window", "我" * 30]
    aligned = []
    for text in texts:
        ids, offsets = encoder.tokenizer.pieces(text)
        places, at = [], 0
        for word in text.split():
            at = text.index(word, at)
            places += [(at, at + len(word))] if word.isascii() else [(at + i, at + i + 1) for i in range(len(word))]
            at += len(word)
        aligned.append(align(places, list(zip(ids, offsets, strict=True))))
    tags = [list(range(len(a.first))) for a in aligned]
    data = StepWindows(encoder, aligned, max_len, context, tags)
    assert data.steps == [len(a.first) for a in aligned]
    seen = [[] for _ in texts]
    for i in range(len(data.windows)):
        batch = data.collate([i])
        assert batch["ids"].shape[1] <= max_len
        a = aligned[data.windows[i].index]
        (begin, stop), (first, last) = data.bounds(i), data.kept(i)
        assert begin <= first <= last <= stop
        seen[data.windows[i].index] += range(first, last)
        assert batch["ids"][0, batch["first"][0]].tolist() == [a.ids[p] for p in a.first[begin:stop]]
        assert batch["tags"][0].tolist() == list(range(begin, stop))
        assert data.weight([i]) == stop - begin
    assert seen == tags


def test_batches_of_unequal_windows_are_padded(tiny_encoder):
    encoder = open_encoder(tiny_encoder)
    aligned = [align([(0, 1), (1, 2)], [(7, (0, 1)), (8, (1, 2))]), align([(0, 1)], [(9, (0, 1))])]
    batch = StepWindows(encoder, aligned, 64, tags=[[1, 2], [3]]).collate([0, 1])
    assert batch["ids"].tolist() == [[2, 7, 8, 3], [2, 9, 3, 0]]
    assert batch["first"].tolist() == [[1, 2], [1, 0]]
    assert batch["tags"].tolist() == [[1, 2], [3, -100]]
    assert batch["steps"].tolist() == [[True, True], [True, False]]
    assert torch.equal(batch["mask"], batch["ids"] != 0)
    assert [spans(["B-A"], "BIO")] == [[(0, 1, "A")]]
