"""AutoRegressiveDecoder: bert4keras' own decodes, its defects by name, seeds, what it does better, messages."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.text import AutoRegressiveDecoder, FunctionSteps, beam_search

DATA = os.environ.get("DANLU_DATA")
needs_oracles = pytest.mark.skipif(DATA is None, reason="DANLU_DATA is not set: the frozen decodes lie there")


def oracles(kind):
    folder = Path(DATA) / "oracles" / "decoding"
    tables = np.load(folder / "tables.npz")
    cases = [case for case in json.loads((folder / "decodes.json").read_text()) if case["kind"] == kind]
    assert cases
    return {int(name.split("_")[1]): tables[name] for name in tables}, cases


def last_two(ids, vocab):
    padded = np.concatenate([np.full((len(ids), 2), vocab - 1), ids], axis=1)
    return padded[:, -2], padded[:, -1]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def decoder_of(table, returns="logits", start=None, end=2, maxlen=7, minlen=1, seen=None):
    class Table(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps(default_rtype=returns)
        def predict(self, inputs, output_ids, states):
            source = np.asarray(inputs[0])[:, 0]
            assert len(source) == len(output_ids)
            logits = table[(source, *last_two(output_ids, table.shape[-1]))]
            if seen is not None:
                seen.append(output_ids.copy())
            return logits if returns == "logits" else softmax(logits)

    return Table(start, end, maxlen, minlen)


def decoder_for(case, tables):
    table = tables[case["table"]]
    return decoder_of(table, *(case[k] for k in ("predict_returns", "start", "end", "maxlen", "minlen")))


class MostProbable:
    """Stands where the random numbers come from, takes the largest, as in the frozen runs; keeps what it was given."""

    def __init__(self):
        self.given = []

    def choice(self, n, p):
        self.given.append(np.sort(p[p > 0])[::-1])
        return int(np.argmax(p))


@needs_oracles
def test_beam_searches_of_bert4keras():
    tables, cases = oracles("beam_search")
    for case in cases:
        found = decoder_for(case, tables).beam_search(
            [[case["source"]]], case["topk"], temperature=case["temperature"], min_ends=case["min_ends"]
        )
        assert found.tolist() == case["ids"], case


@needs_oracles
def test_filtered_choices_of_bert4keras():
    tables, cases = oracles("filtered_argmax")
    for case in cases:
        rng = MostProbable()
        (found,) = decoder_for(case, tables).random_sample(
            [[case["source"]]], 1, case["topk"], case["topp"], temperature=case["temperature"], rng=rng
        )
        assert found.tolist() == case["ids"], case
        for given, kept in zip(rng.given, case["kept_probabilities"], strict=True):
            np.testing.assert_allclose(given, kept, atol=1e-8)


# p(next | last) of tokens a, b and the end: a leads, but ends badly.
ENDING = np.log(np.array([[0.3, 0.2, 0.5], [0.3, 0.2, 0.5], [0.5, 0.1, 0.4]])[None, None].repeat(3, axis=1))


def test_dropped_beams_return_a_worse_answer():
    theirs = decoder_of(ENDING).beam_search([[0]], topk=2)
    assert theirs.tolist() == [0, 2]  # probability 0.25; the end at once has 0.4 and was dropped
    steps = FunctionSteps(lambda ids: torch.from_numpy(ENDING[0, 0, ids.numpy()]), [[2]])
    ours = beam_search(steps, end_id=2, num_beams=2, max_new_tokens=7, length_penalty=0.0)
    assert ours.best(with_end=True) == [[2]]
    assert float(ours.scores.exp()) == pytest.approx(0.4)


def test_start_counts_and_writing_past_the_end():
    always_end = np.log(np.array([0.1, 0.1, 0.8]))[None, None, None].repeat(3, axis=1).repeat(3, axis=2)
    assert decoder_of(always_end, start=2).beam_search([[0]], 1).tolist() == [2, 2]
    assert decoder_of(always_end, start=2).beam_search([[0]], 1, min_ends=3).tolist() == [2, 2, 2]
    assert decoder_of(always_end, minlen=4).beam_search([[0]], 1).tolist() == [2, 2, 2, 2]
    (drawn,) = decoder_of(always_end, minlen=4).random_sample([[0]], 1, topk=1)
    assert drawn.tolist() == [2, 2, 2, 2]


def test_states_go_on_in_place():
    handed = []

    class Counting(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps(use_states=True)
        def predict(self, inputs, output_ids, states):
            handed.append(states)
            return np.full((len(output_ids), 4), 0.25), len(handed)

    Counting(None, 9, 3).beam_search([], topk=2, states="first")
    assert handed == ["first", 1, 2]


def test_without_states_none_are_handed_on():
    handed = []

    class Without(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps()
        def predict(self, inputs, output_ids, states):
            handed.append(states)
            return np.full((len(output_ids), 4), 0.25)

    Without(None, 9, 2).beam_search([], topk=1, states="first")
    assert handed == ["first", None]


def test_an_impossible_token_has_a_finite_score():
    values, _ = decoder_of(ENDING, "probas").predict([np.array([[0]])], np.array([[0]]), None, 1, "logits")
    assert np.isfinite(values).all()
    never = np.array([[[[0.0, 0.0, -np.inf]] * 3] * 3])
    values, _ = decoder_of(never, "probas").predict([np.array([[0]])], np.array([[0]]), None, 1, "logits")
    np.testing.assert_allclose(values[0], np.log([0.5 + 1e-12, 0.5 + 1e-12, 1e-12]), rtol=1e-12)


def test_the_nucleus_ends_where_the_sum_is_reached():
    halves = np.log(np.array([0.5, 0.25, 0.25]))[None, None, None].repeat(3, axis=1).repeat(3, axis=2)
    for topp, kept in ((0.5, [1.0]), (0.51, [2 / 3, 1 / 3])):
        rng = MostProbable()
        decoder_of(halves, maxlen=1).random_sample([[0]], 1, topp=topp, rng=rng)
        np.testing.assert_allclose(rng.given[0], kept)


def test_a_seed_draws_what_it_draws_in_bert4keras():
    table = np.random.default_rng(0).normal(size=(1, 6, 6, 6)) * 2
    found = decoder_of(table, maxlen=12, end=5).random_sample([[0]], 3, rng=np.random.RandomState(7))
    draws, alive, expected = np.random.RandomState(7), [[], [], []], []  # loop: one uniform number a row, inverse sum
    for _ in range(12):
        for ids in alive:
            before, last = [5, 5, *ids][-2:]
            p = softmax(table[0, before, last])
            ids.append(int(np.searchsorted(p.cumsum() / p.sum(), draws.random_sample(), side="right")))
        expected += [ids for ids in alive if ids[-1] == 5]
        alive = [ids for ids in alive if ids[-1] != 5]
    assert [answer.tolist() for answer in found] == expected + alive


def test_inputs_are_repeated_for_every_row():
    rows = []

    class Watching(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps()
        def predict(self, inputs, output_ids, states):
            rows.append((inputs[0].tolist(), len(output_ids)))
            return np.array([[0.5, 0.3, 0.2]]).repeat(len(output_ids), axis=0)

    Watching(None, 2, 3).random_sample([[4, 6]], n=2, rng=MostProbable())
    assert rows == [([[4, 6]], 1), ([[4, 6]] * 2, 2), ([[4, 6]] * 2, 2)]


def test_more_beams_than_tokens_take_all_of_them():
    seen = []
    table = np.random.default_rng(1).normal(size=(1, 3, 3, 3))
    decoder_of(table, maxlen=3, end=9, seen=seen).beam_search([[0]], topk=20)
    assert [len(ids) for ids in seen] == [1, 3, 9]
    (drawn,) = decoder_of(table, maxlen=2, end=9).random_sample([[0]], 1, topk=20)
    assert len(drawn) == 2


def test_predict_may_return_tensors_and_keeps_its_arrays():
    held = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.bfloat16)

    class Tensors(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps()
        def predict(self, inputs, output_ids, states):
            return held.expand(len(output_ids), -1)

    assert Tensors(None, 2, 2).beam_search([], 1, temperature=2.0).tolist() == [0, 0]
    Tensors(None, 2, 2).random_sample([], 4, topk=2, topp=0.5, temperature=0.5)
    Tensors(None, 2, 2).random_sample([], 4)  # the sum of rounded probabilities is not 1
    assert held.tolist() == torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.bfloat16).tolist()


def test_temperature_acts_on_the_logits_or_on_powers_of_the_probabilities():
    table = np.random.default_rng(2).normal(size=(1, 4, 4, 4))
    ids, source = np.array([[1, 2]]), [np.array([[0]])]
    of_logits, _ = decoder_of(table).predict(source, ids, None, 0.7, "probas")
    of_powers, _ = decoder_of(table, "probas").predict(source, ids, None, 0.7, "logits")
    np.testing.assert_allclose(of_logits, softmax(table[0, 1, [2]] / 0.7))
    np.testing.assert_allclose(of_powers, np.log(of_logits + 1e-12))


def test_messages():
    with pytest.raises(NotImplementedError, match=r"AutoRegressiveDecoder needs a method predict.*wraps"):
        AutoRegressiveDecoder(None, 2, 5).beam_search([], 1)
    with pytest.raises(ValueError, match=r'default_rtype must be "probas" or "logits"; got \'probs\''):
        AutoRegressiveDecoder.wraps(default_rtype="probs")
    with pytest.raises(ValueError, match=r'^rtype must be "probas" or "logits"; got \'logit\''):
        decoder_of(ENDING).predict([np.array([[0]])], np.array([[0]]), None, 1, "logit")
    for call in (lambda d: d.beam_search([[0]], 0), lambda d: d.random_sample([[0]], 1, topk=0)):
        with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
            call(decoder_of(ENDING))
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        decoder_of(ENDING).random_sample([[0]], 0)
    for call in (lambda d: d.beam_search([[0]], 1), lambda d: d.random_sample([[0]], 1)):
        with pytest.raises(ValueError, match="predict returned nan at step 0"):
            call(decoder_of(ENDING * np.nan))
