"""Triple scores: counts by hand, the same mention twice, predicates, kinds of overlap, the message."""

import itertools

import pytest

from danlu.math import overlap_kinds, triple_breakdown, triple_counts, triple_report

A, B, C, D = (0, 2), (3, 5), (6, 8), (9, 11)  # A and C are mentions of one name


def test_places_tell_mentions_of_one_name_apart_and_texts_do_not():
    gold, found = [(A, "r", B), (C, "r", B)], [(A, "r", B), (A, "q", B), (C, "r", B), (C, "r", B)]
    name = {A: "x", C: "x", B: "y"}
    texts = [[(name[s], p, name[o]) for s, p, o in side] for side in (found, gold)]
    assert triple_counts([found], [gold]) == [(2, 3, 2)]
    assert triple_counts([texts[0]], [texts[1]]) == [(1, 2, 1)]
    assert triple_counts([[(C, "r", B)]], [[(A, "r", B)]]) == [(0, 1, 1)]


def test_subject_and_object_are_not_exchanged():
    assert triple_counts([[(B, "r", A)]], [[(A, "r", B)]]) == [(0, 1, 1)]


def test_report_by_predicate_and_micro():
    found = [[(A, "r", B), (A, "q", C)], [], [(A, "r", D)]]
    gold = [[(A, "r", B), (A, "r", C)], [(A, "q", B)], []]
    report = triple_report(found, gold)
    assert report.micro.precision == report.micro.recall == pytest.approx(1 / 3)
    assert report.by_type["r"].f1 == pytest.approx(0.5)
    assert (report.by_type["q"].f1, report.by_type["q"].support) == (0.0, 1)
    assert report.macro.f1 == pytest.approx(0.25)
    assert triple_report([[]], [[]]).micro.f1 == 0.0


@pytest.mark.parametrize(
    ("triples", "kinds"),
    [
        ([], set()),
        ([(A, "r", B)], {"normal"}),
        ([(A, "r", B), (A, "r", B)], {"normal"}),
        ([(A, "r", B), (C, "r", D)], {"normal"}),
        ([(A, "r", B), (A, "q", B)], {"pair"}),
        ([(A, "r", B), (B, "r", A)], {"pair"}),
        ([(A, "r", B), (B, "r", C)], {"entity"}),
        ([(A, "r", B), (C, "r", B)], {"entity"}),
        ([(A, "r", A), (A, "r", B)], {"entity"}),
        ([(A, "r", B), (A, "q", B), (C, "r", D), (D, "r", A)], {"pair", "entity"}),
    ],
)
def test_kinds_of_overlap(triples, kinds):
    for order in itertools.permutations(triples):
        assert overlap_kinds(order) == kinds


def test_breakdown_counts_a_sentence_under_all_its_kinds():
    many = [(A, str(i), B) for i in range(7)]
    found = [[(A, "r", B)], [(A, "0", B)], [(A, "r", B)]]
    gold = [[(A, "r", B)], many, []]
    scores = triple_breakdown(found, gold)
    assert list(scores) == ["normal", "pair", "0 triples", "1 triple", "5 or more"]
    assert scores["pair"] == scores["5 or more"]
    assert (scores["pair"].precision, scores["pair"].recall, scores["pair"].support) == (1.0, pytest.approx(1 / 7), 7)
    assert (scores["0 triples"].precision, scores["0 triples"].f1) == (0.0, 0.0)
    four = triple_breakdown([[]], [many[:4]])
    assert list(four) == ["pair", "4 triples"]


def test_message():
    with pytest.raises(ValueError, match="every sentence, got 1 predicted and 2 gold lists; a sentence without"):
        triple_counts([[]], [[], []])
