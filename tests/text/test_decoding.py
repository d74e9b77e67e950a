"""greedy, sample, stream: loops row by row, bert4keras' greedy runs, transformers, frequencies, seeds, messages."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.text import FunctionSteps, Generated, greedy, no_repeat_ngram, sample, stream

V, END = 6, 5
TABLE = 2 * torch.randn(V, V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
PROMPTS = [[0, 1], [2], [3, 4, 0], [1]]


def model(ids):
    """Logits (R, T, V) from the last two tokens."""
    return TABLE[torch.nn.functional.pad(ids, (1, 0))[:, :-1], ids]


def steps(prompts=PROMPTS):
    return FunctionSteps(model, prompts, pad=0)


def next_logits(ids):
    return TABLE[([0, *ids])[-2], ids[-1]].tolist()


def log_softmax(row):
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


def greedy_by_hand(prompt, ends, longest, shortest=0):
    """Oracle: one row in a Python loop; its tokens and their log-probability."""
    ids, score = list(prompt), 0.0
    for n in range(longest):
        log_p = log_softmax(next_logits(ids))
        token = max((v for v in range(V) if n >= shortest or v not in ends), key=lambda v: log_p[v])
        ids.append(token)
        score += log_p[token]
        if token in ends:
            break
    return ids[len(prompt) :], score


@pytest.mark.parametrize(("end", "shortest"), [(END, 0), ([4, 5], 0), (None, 0), (0, 4), ([0, 3], 3)])
def test_greedy_is_the_loop_of_every_row(end, shortest):
    ends = [] if end is None else [end] if isinstance(end, int) else end
    found = greedy(steps(), end_id=end, max_new_tokens=9, min_new_tokens=shortest)
    expected = [greedy_by_hand(p, ends, 9, shortest) for p in PROMPTS]
    assert found.best(with_end=True) == [ids for ids, _ in expected]
    assert found.best() == [ids[:-1] if ids[-1] in ends else ids for ids, _ in expected]
    np.testing.assert_allclose(found.scores[:, 0], [score for _, score in expected])
    assert found.lengths[:, 0].tolist() == [len(ids) for ids, _ in expected]
    assert found.finished[:, 0].tolist() == [ids[-1] in ends for ids, _ in expected]
    assert found.tokens.shape == (4, 1, max(len(ids) for ids, _ in expected))
    assert all(row[n:].eq(-1).all() for row, n in zip(found.tokens[:, 0], found.lengths[:, 0], strict=True))


@pytest.mark.skipif("DANLU_DATA" not in os.environ, reason="DANLU_DATA is not set: the frozen decodes lie there")
def test_greedy_runs_of_bert4keras():
    """Their filtered runs took the most probable token each time; with minlen they may write past an end: left out."""
    folder = Path(os.environ["DANLU_DATA"]) / "oracles" / "decoding"
    tables, compared = np.load(folder / "tables.npz"), 0
    for case in json.loads((folder / "decodes.json").read_text()):
        if case["kind"] != "filtered_argmax" or case["minlen"] > 1:
            continue
        table = torch.from_numpy(tables[f"table_{case['table']}"][case["source"]])

        def last(ids, table=table):
            padded = torch.nn.functional.pad(ids, (2, 0), value=len(table) - 1)
            return table[padded[:, -2], padded[:, -1]]

        start = [] if case["start"] is None else [case["start"]]
        limits = {"end_id": case["end"], "max_new_tokens": case["maxlen"]}
        assert greedy(FunctionSteps(last, [start]), **limits).best(with_end=True) == [case["ids"][len(start) :]]
        if case["topk"] == 1:
            drawn = sample(FunctionSteps(last, [start]), **limits, top_k=1, temperature=case["temperature"])
            assert drawn.best(with_end=True) == [case["ids"][len(start) :]]
        compared += 1
    assert compared > 50


def test_greedy_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=17, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    gpt = transformers.GPT2LMHeadModel(config).eval()
    for weight in gpt.parameters():
        weight.data.mul_(4)
    prompts = torch.randint(0, 17, (5, 4))
    for shortest in (0, 6):
        limits = {"max_new_tokens": 12, "min_new_tokens": shortest}
        theirs = gpt.generate(
            prompts, do_sample=False, eos_token_id=[9, 3], pad_token_id=0, **limits,
            attention_mask=torch.ones_like(prompts),
        )  # fmt: skip
        ours = greedy(FunctionSteps(lambda ids: gpt(ids).logits, prompts), end_id=[9, 3], **limits)
        answers = ours.tokens[:, 0].masked_fill(ours.tokens[:, 0] < 0, 0)
        assert answers.tolist() == theirs[:, 4:].tolist()
        assert len(set(ours.lengths.flatten().tolist())) > 1


def test_a_stream_yields_what_is_gathered():
    generator = torch.Generator()
    settings = {"end_id": END, "max_new_tokens": 7, "num_samples": 3, "top_p": 0.9}
    whole = sample(steps(), generator=generator.manual_seed(1), **settings)
    parts = list(stream(steps(), generator=generator.manual_seed(1), **settings))
    assert torch.stack(parts, 1).reshape(4, 3, -1).tolist() == whole.tokens.tolist()
    parts = list(stream(steps(), end_id=END, max_new_tokens=7, temperature=0))
    assert torch.stack(parts, 1)[:, None].tolist() == greedy(steps(), end_id=END, max_new_tokens=7).tokens.tolist()


def test_the_model_runs_between_two_tokens_and_only_on_rows_alive():
    rows = []

    def watched(ids):
        rows.append(len(ids))
        return model(ids)

    tokens = stream(FunctionSteps(watched, PROMPTS, pad=0), end_id=END, max_new_tokens=9, temperature=0)
    assert rows == [4]  # the look at the width of the logits
    first = next(tokens)
    assert rows == [4]
    assert first.tolist() == [greedy_by_hand(p, [END], 1)[0][0] for p in PROMPTS]
    rest = list(tokens)
    lengths = [len(greedy_by_hand(p, [END], 9)[0]) for p in PROMPTS]
    assert min(lengths) < max(lengths) == len(rest) + 1
    assert rows == [sum(n > t for n in lengths) for t in range(max(lengths))]


def test_gradients_are_off_inside_and_on_between():
    on = []

    def watched(ids):
        on.append(torch.is_grad_enabled())
        return model(ids)

    for _ in stream(FunctionSteps(watched, [[0]]), end_id=None, max_new_tokens=3):
        on.append(torch.is_grad_enabled())
    assert on == [False, True, False, True, False, True]


def test_samples_come_as_often_as_they_should():
    """Every answer of up to two tokens by its probability: the law of the drawing, end tokens and temperature in it."""
    count, temperature = 4000, 1.5
    drawn = sample(
        steps([[0, 1]]), end_id=END, max_new_tokens=2, temperature=temperature, num_samples=count,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    answers = [tuple(ids) for ids in drawn.answers(with_end=True)[0]]
    first = log_softmax([x / temperature for x in next_logits([0, 1])])
    expected = {(END,): math.exp(first[END])}
    for v in range(V - 1):
        second = log_softmax([x / temperature for x in next_logits([0, 1, v])])
        expected |= {(v, w): math.exp(first[v] + second[w]) for w in range(V)}
    assert sum(expected.values()) == pytest.approx(1)
    for answer, p in expected.items():
        assert abs(answers.count(answer) / count - p) < 4 * math.sqrt(p * (1 - p) / count), answer
    one = log_softmax(next_logits([0, 1]))  # scores: the model's own, at temperature 1
    for ids, score in zip(answers[:50], drawn.scores[0].tolist(), strict=False):
        expected_score = one[ids[0]] + (log_softmax(next_logits([0, 1, ids[0]]))[ids[1]] if len(ids) > 1 else 0)
        assert score == pytest.approx(expected_score)


def support(prompt, **settings):
    """First tokens that are ever drawn."""
    drawn = sample(steps([prompt]), end_id=END, max_new_tokens=1, num_samples=600, **settings)
    return set(drawn.tokens.flatten().tolist())


def test_filters_act_after_the_temperature_and_k_before_p():
    order = sorted(range(V), key=lambda v: -next_logits([0, 1])[v])
    assert support([0, 1], top_k=2, temperature=9.0) == set(order[:2])
    cold = log_softmax([x / 0.1 for x in next_logits([0, 1])])
    assert math.exp(cold[order[0]]) > 0.9
    assert support([0, 1], top_p=0.9, temperature=0.1) == {order[0]}
    assert len(support([0, 1], top_p=0.9)) > 1
    two = [math.exp(next_logits([0, 1])[v]) for v in order[:2]]
    share = two[0] / sum(two)  # of the best among the two: the nucleus is one or two tokens as p lies below or above it
    assert support([0, 1], top_k=2, top_p=share - 0.01) == {order[0]}
    assert support([0, 1], top_k=2, top_p=share + 0.01) == set(order[:2])


def test_consistent_sampling_keeps_the_end_unless_it_is_forbidden():
    order = sorted(range(V), key=lambda v: -next_logits([0, 1])[v])
    assert END not in order[:2]
    hot = {"temperature": 50.0, "consistent": True}
    assert support([0, 1], top_k=1, **hot) == {order[0], END}
    assert support([0, 1], top_p=1e-6, **hot) == {order[0], END}
    assert support([0, 1], top_k=1, min_new_tokens=1, **hot) == {order[0]}


def test_consistent_top_k_stops_where_top_k_never_does():
    logits = torch.tensor([3.0, 2.0, 0.0])  # the end is third
    plain, consistent = (
        sample(
            FunctionSteps(lambda ids: logits.expand(len(ids), -1), [[0]]), end_id=2, max_new_tokens=400, top_k=2,
            num_samples=50, consistent=c, generator=torch.Generator().manual_seed(0),
        )
        for c in (False, True)
    )  # fmt: skip
    assert not plain.finished.any()
    assert consistent.finished.all()
    mean = 1 / float(logits.softmax(0)[2])  # lengths are geometric
    assert abs(float(consistent.lengths.double().mean()) - mean) < 4 * mean / math.sqrt(50)


def test_same_seed_same_tokens_and_more_room_only_adds():
    def run(seed, longest=6):
        return sample(
            steps(), end_id=None, max_new_tokens=longest, num_samples=2, generator=torch.Generator().manual_seed(seed)
        ).tokens

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(run(1, 9)[..., :6], run(1))


def test_generators_of_rows_make_rows_the_same_in_any_batch():
    def run(which):
        return sample(
            steps([PROMPTS[i] for i in which]), end_id=END, max_new_tokens=8,
            generator=[torch.Generator().manual_seed(i) for i in which],
        ).best(with_end=True)  # fmt: skip

    together = run([0, 1, 2, 3])
    assert run([2]) + run([0]) == [together[2], together[0]]
    assert run([3, 1, 0]) == [together[3], together[1], together[0]]


def test_without_a_generator_torchs_own_is_used():
    torch.manual_seed(4)
    first = sample(steps(), end_id=None, max_new_tokens=6).tokens
    assert not torch.equal(first, sample(steps(), end_id=None, max_new_tokens=6).tokens)
    torch.manual_seed(4)
    assert torch.equal(first, sample(steps(), end_id=None, max_new_tokens=6).tokens)


def test_adjust_sees_what_each_row_wrote():
    seen = []

    def adjust(tokens, logits):
        seen.append(tokens.tolist())
        return no_repeat_ngram(tokens, logits, 1)

    found = greedy(steps(), end_id=END, max_new_tokens=4, adjust=adjust)
    answers = found.best(with_end=True)
    assert all(len(set(ids)) == len(ids) for ids in answers)
    for t, rows in enumerate(seen):
        assert rows == [ids[:t] for ids in answers if len(ids) > t]
    raw = next_logits(PROMPTS[0])
    assert answers[0][0] == raw.index(max(raw))


def test_half_precision_logits_and_integer_prompts():
    low = FunctionSteps(lambda ids: model(ids).bfloat16(), torch.tensor([[0, 1]], dtype=torch.int32))
    found = greedy(low, end_id=END, max_new_tokens=3)
    assert found.scores.dtype == torch.float32
    p = TABLE[0, 1].bfloat16().float().log_softmax(0)
    assert float(found.scores) <= float(p.max())


def test_messages():
    def bad(value, at):
        return FunctionSteps(lambda ids: torch.full((len(ids), V), value if ids.shape[1] == at else 0.0), [[0], [1]])

    with pytest.raises(ValueError, match=r"greedy: the logits of row 0 at step 2 hold nan.*precision"):
        greedy(bad(math.nan, 3), end_id=None, max_new_tokens=5)
    with pytest.raises(ValueError, match=r"sample: the logits of row 0 at step 1 hold nan"):
        sample(bad(math.nan, 2), end_id=None, max_new_tokens=5, top_k=2, top_p=0.5)
    with pytest.raises(ValueError, match=r"greedy: the logits of row 0 at step 0 forbid every token: loosen"):
        greedy(bad(-math.inf, 1), end_id=None, max_new_tokens=5)
    with pytest.raises(ValueError, match=r"greedy: end_id 6 lies outside the vocabulary of 6; give the tokenizer's"):
        greedy(steps(), end_id=6, max_new_tokens=5)
    with pytest.raises(ValueError, match=r"sample needs max_new_tokens >= 1 and .*; got 2 and 3"):
        sample(steps(), end_id=END, max_new_tokens=2, min_new_tokens=3)
    with pytest.raises(ValueError, match=r"greedy needs max_new_tokens >= 1 .*; got 0 and 0"):
        greedy(steps(), end_id=END, max_new_tokens=0)
    for setting, message in [
        ({"temperature": -1}, "stream: temperature must be >= 0 and finite, got -1; 0 is greedy"),
        ({"top_k": 0}, "stream: top_k must be at least 1, got 0; for no limit leave it None"),
        ({"top_p": 0}, r"stream: top_p must lie in \(0, 1\], got 0; for no limit"),
        ({"num_samples": 0}, "stream: num_samples must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):  # at once, not at the first token
            stream(steps(), end_id=END, max_new_tokens=3, **setting)
    with pytest.raises(ValueError, match=r"sample: 1 generators for 8 rows .*; give one a row, or a single one"):
        sample(steps(), end_id=END, max_new_tokens=3, num_samples=2, generator=[torch.Generator()])


def test_the_row_that_breaks_is_named_though_others_have_left():
    def breaking(ids):
        logits = torch.nn.functional.one_hot(torch.where(ids[:, -1] == 0, 2, 1), 3).double()  # row 0 ends at once
        return torch.where((ids[:, :1] == 1) & (ids.shape[1] == 2), math.nan, logits)

    with pytest.raises(ValueError, match="the logits of row 1 at step 1 hold nan"):
        greedy(FunctionSteps(breaking, [[0], [1]]), end_id=2, max_new_tokens=4)


def test_answers_that_do_not_exist_are_left_out():
    found = Generated(
        torch.tensor([[[1, 2], [3, -1]], [[4, 5], [-1, -1]], [[-1, -1], [-1, -1]]]),
        torch.tensor([[2, 1], [2, 0], [0, 0]]),
        torch.zeros(3, 2),
        torch.tensor([[True, True], [False, False], [False, False]]),
    )
    assert found.answers() == [[[1], []], [[4, 5]], []]
    assert found.answers(with_end=True) == [[[1, 2], [3]], [[4, 5]], []]
    assert found.best() == [[1], [4, 5], []]
