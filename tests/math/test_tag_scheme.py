"""Tag schemes: against seqeval on random tags, against enumeration of all sentences, round trips, messages."""

import itertools
import random

import pytest
import torch

from danlu.math.tag_scheme import (
    SCHEMES,
    allowed_transitions,
    convert_tags,
    detect_scheme,
    illegal_steps,
    repair_tags,
    scheme_labels,
    spans,
    split_tag,
    tags_from_spans,
)


def all_span_sets(length, types):
    """Every set of disjoint typed spans of a sentence, by recursion over the first token."""
    if length <= 0:
        return [[]]
    result = [[(a + 1, b + 1, t) for a, b, t in rest] for rest in all_span_sets(length - 1, types)]
    for size in range(1, length + 1):
        for kind in types:
            for rest in all_span_sets(length - size, types):
                result.append([(0, size, kind)] + [(a + size, b + size, t) for a, b, t in rest])
    return result


@pytest.mark.parametrize("scheme", ["BIO", "BIOES", "BMES", "BILOU"])
def test_spans_are_seqevals(scheme):
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    rename = str.maketrans({"M": "I", "L": "E", "U": "S"})  # seqeval knows B, I, E, S, O
    draw = random.Random(1)
    labels = scheme_labels(["PER", "LOC-X"], scheme)
    for _ in range(2000):
        tags = [draw.choice(labels) for _ in range(draw.randint(0, 8))]
        renamed = [tag[0].translate(rename) + tag[1:] for tag in tags]
        expected = [(start, end + 1, kind) for kind, start, end in seqeval.get_entities(renamed)]
        assert spans(tags, scheme) == expected, tags


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("types", [("",), ("X", "Y")])
def test_legal_sentences_are_those_that_spans_write(scheme, types):  # enumeration: 5^4 .. 9^4 sentences
    labels = scheme_labels(types, scheme)
    allowed, start, end = allowed_transitions(labels, scheme)
    for length in (1, 2, 3, 4):
        written = set()
        for spans_ in all_span_sets(length, types):
            tags = tags_from_spans(spans_, length, scheme)
            assert spans(tags, scheme) == sorted(spans_)
            assert repair_tags(tags, scheme) == tags
            written.add(tuple(tags))
        for ids in itertools.product(range(len(labels)), repeat=length):
            tags = tuple(labels[i] for i in ids)
            by_matrix = bool(start[ids[0]]) and bool(end[ids[-1]])
            by_matrix = by_matrix and all(bool(allowed[a, b]) for a, b in itertools.pairwise(ids))
            assert by_matrix == (tags in written), tags
            assert (illegal_steps(tags, scheme) == []) == (tags in written), tags


def test_matrices_are_bool_and_keep_the_order_of_labels():
    allowed, start, end = allowed_transitions(["I-X", "O", "B-X"], "BIO")
    assert allowed.dtype == start.dtype == end.dtype == torch.bool
    assert allowed.tolist() == [[True, True, True], [False, True, True], [True, True, True]]
    assert start.tolist() == [False, True, True]
    allowed, start, end = allowed_transitions(list("BMES"), "BMES")
    assert allowed.int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1]]
    assert start.tolist() == [True, False, False, True]
    assert end.tolist() == [False, False, True, True]


@pytest.mark.parametrize("source", SCHEMES)
@pytest.mark.parametrize("target", SCHEMES)
def test_conversion_keeps_the_spans(source, target):
    for found in all_span_sets(4, ("X", "Y")):
        tags = tags_from_spans(found, 4, source)
        assert spans(convert_tags(tags, source, target), target) == sorted(found)


def test_examples_by_hand():
    assert spans(["B-PER", "I-LOC", "E-LOC"], "BIOES") == [(0, 1, "PER"), (1, 3, "LOC")]
    assert spans(["B-PER", "O"], "BIOES") == [(0, 1, "PER")]  # unfinished still counts
    assert spans([], "BIO") == []
    assert tags_from_spans([(2, 3, "A"), (0, 2, "A")], 4, "IOB1") == ["I-A", "I-A", "B-A", "O"]
    assert tags_from_spans([(0, 2, "A"), (3, 4, "A")], 4, "IOB1") == ["I-A", "I-A", "O", "I-A"]
    assert split_tag("B-PER-NAM") == ("B", "PER-NAM")


def test_illegal_steps_name_the_place():
    assert illegal_steps(["I-X", "O", "I-X", "I-Y"], "BIO") == [0, 2, 3]
    assert illegal_steps(["B-X", "I-X"], "BIOES") == [2]
    assert illegal_steps(["B", "B", "E"], "BMES") == [1]
    assert illegal_steps(["B-X"], "IOB1") == [0]


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (["O", "B-PER", "I-PER"], "BIO"),
        (["O", "B-PER"], "BIO"),
        (["O", "I-PER"], "IOB1"),
        (list("BMES"), "BMES"),
        (["S"], "BMES"),
        (["O", "B-PER", "M-PER", "E-PER"], "BMES"),
        (["O", "B-PER", "I-PER", "E-PER"], "BIOES"),
        (["O", "S-PER"], "BIOES"),
        (["S-n", "B-v", "E-v"], "BMES"),
        (["O", "B-PER", "L-PER"], "BILOU"),
        (["U-PER", "O"], "BILOU"),
    ],
)
def test_detection(labels, scheme):
    assert detect_scheme(labels) == scheme
    assert detect_scheme(reversed(labels)) == scheme


def test_messages():
    with pytest.raises(ValueError, match=r"unknown tag scheme 'BIOS'; allowed are BIO, IOB1"):
        spans(["O"], "BIOS")
    with pytest.raises(ValueError, match=r"'M-X' is not a tag of BIO: expected 'O' or one of B, I"):
        spans(["M-X"], "BIO")
    with pytest.raises(ValueError, match=r"'B-' is not a tag"):
        spans(["B-"], "BIO")
    with pytest.raises(ValueError, match=r"0 <= start < end <= 3.*got start 2, end 4"):
        tags_from_spans([(2, 4, "X")], 3)
    with pytest.raises(ValueError, match=r"must not overlap, got \(0, 2, 'X'\) and \(1, 3, 'Y'\)"):
        tags_from_spans([(0, 2, "X"), (1, 3, "Y")], 3)
    with pytest.raises(ValueError, match=r"'B_PER' is not 'O'.*write B-PER instead"):
        detect_scheme(["O", "B_PER"])
    with pytest.raises(ValueError, match=r"'PER' is not 'O'"):
        detect_scheme(["PER"])
    with pytest.raises(ValueError, match=r"nothing but 'O'; name it"):
        detect_scheme(["O"])
    with pytest.raises(ValueError, match=r"prefixes B, I, M belong to no one scheme"):
        detect_scheme(["B-X", "I-X", "M-X"])
    with pytest.raises(ValueError, match=r"'O' is given twice"):
        allowed_transitions(["O", "O"])
    with pytest.raises(ValueError, match=r"none may end one; add the missing labels"):
        allowed_transitions(["B", "M"], "BMES")
