"""beam_search: exhaustive, a search in Python lists, transformers, greedy; early stop, groups, batches, messages."""

import itertools
import math

import numpy as np
import pytest
import torch

from danlu.text import FunctionSteps, beam_search, greedy, no_repeat_ngram

INF = math.inf


class Toy:
    """p(next | last two tokens, how many there are) at random, as tensors for the search and lists for the oracles."""

    def __init__(self, vocab, seed, scale=2.0):
        generator = torch.Generator().manual_seed(seed)
        logits = scale * torch.randn(40, vocab, vocab, vocab, dtype=torch.float64, generator=generator)
        self.vocab, self.table = vocab, logits.log_softmax(-1)
        self.lists = self.table.tolist()
        self.calls = []

    def __call__(self, ids):
        self.calls.append(len(ids))
        return self.table[torch.arange(ids.shape[1]), torch.nn.functional.pad(ids, (1, 0))[:, :-1], ids]

    def steps(self, prompts):
        return FunctionSteps(self, prompts, pad=0)

    def log_probs(self, ids):
        return self.lists[len(ids) - 1][([0, *ids])[-2]][ids[-1]]

    def score(self, prompt, answer):
        return sum(self.log_probs([*prompt, *answer[:n]])[v] for n, v in enumerate(answer))


def every_answer(toy, prompt, ends, longest, shortest=0):
    """Oracle: all answers there are, with s."""
    out = []
    for length in range(1, longest + 1):
        for ids in itertools.product(range(toy.vocab), repeat=length):
            early = any(v in ends for v in ids[:-1])
            ended = ids[-1] in ends and length > shortest
            if not early and (ended or (length == longest and ids[-1] not in ends)):
                out.append((toy.score(prompt, ids), list(ids)))
    return out


def search_by_hand(toy, prompt, ends, beams, longest, power, groups=1, diversity=0.0, shortest=0):
    """Oracle: eqs. (1), (2), (4) over lists, to the greatest length, no early stop; answers of every group."""
    k = beams // groups
    alive = [[(0.0, 0.0, [])] for _ in range(groups)]  # rank, s, tokens
    complete = [[] for _ in range(groups)]
    for n in range(1, longest + 1):
        taken = [0] * toy.vocab
        for g in range(groups):
            options = []
            for rank, s, ids in alive[g]:
                log_p = toy.log_probs([*prompt, *ids])
                for v in range(toy.vocab):
                    if v not in ends or n > shortest:
                        options.append((rank + log_p[v] - diversity * taken[v], s + log_p[v], [*ids, v]))
            options.sort(key=lambda option: -option[0])
            for _, s, ids in options[:k]:
                if ids[-1] in ends or n == longest:
                    complete[g].append((s / n**power, ids))
            alive[g] = [option for option in options if option[2][-1] not in ends][:k]
            for _, _, ids in alive[g]:
                taken[ids[-1]] += 1
    return [sorted(answers, key=lambda answer: -answer[0])[:k] for answers in complete]


def compare(found, row, expected):
    assert found.answers(with_end=True)[row] == [ids for _, ids in expected]
    np.testing.assert_allclose(found.scores[row][: len(expected)], [score for score, _ in expected])
    assert found.scores[row][len(expected) :].eq(-INF).all()


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize(("ends", "shortest"), [([2], 0), ([1, 2], 0), ([2], 2), ([], 0)])
def test_enough_beams_are_exhaustive(power, ends, shortest):
    toy, prompts = Toy(3, 0), [[0], [1, 2], [2, 2]]
    found = beam_search(
        toy.steps(prompts), end_id=ends, num_beams=27, max_new_tokens=4, length_penalty=power, num_return=6,
        min_new_tokens=shortest,
    )  # fmt: skip
    for row, prompt in enumerate(prompts):
        answers = [(s / len(ids) ** power, ids) for s, ids in every_answer(toy, prompt, ends, 4, shortest)]
        compare(found, row, sorted(answers, key=lambda answer: -answer[0])[:6])


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0, -0.5])
@pytest.mark.parametrize("beams", [1, 2, 3, 8])
@pytest.mark.parametrize(("ends", "shortest"), [([4], 0), ([0, 4], 0), ([4], 3), ([], 0)])
def test_search_in_lists_without_early_stop_gives_the_same(power, beams, ends, shortest):
    toy, prompts = Toy(5, beams, scale=1.0), [[0], [1, 2], [3, 3, 1], [4]]
    found = beam_search(
        toy.steps(prompts), end_id=ends, num_beams=beams, max_new_tokens=7, length_penalty=power, num_return=beams,
        min_new_tokens=shortest,
    )  # fmt: skip
    for row, prompt in enumerate(prompts):
        (expected,) = search_by_hand(toy, prompt, ends, beams, 7, power, shortest=shortest)
        compare(found, row, expected)


def test_the_early_stop_saves_work_and_changes_nothing():
    saved = 0
    for seed in range(20):
        toy = Toy(5, seed, scale=3.0)
        for power in (0.0, 1.0):
            toy.calls.clear()
            settings = {"end_id": 4, "num_beams": 3, "max_new_tokens": 30, "length_penalty": power, "num_return": 2}
            found = beam_search(toy.steps([[0], [1]]), **settings)
            saved += 30 - len(toy.calls)
            for row, prompt in enumerate([[0], [1]]):
                (expected,) = search_by_hand(toy, prompt, [4], 3, 30, power)
                compare(found, row, expected[:2])
    assert saved > 200  # steps, of 20 * 60


def test_the_bound_of_a_negative_penalty_is_the_next_length():
    table = torch.tensor([[0.0, 0.6, 0.25, 0.15], [0.03, 0.01, 0.95, 0.01], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    steps = FunctionSteps(lambda ids: table.log()[ids], [[0]])
    found = beam_search(steps, end_id=2, num_beams=2, max_new_tokens=10, length_penalty=-1.0)
    assert found.best(with_end=True) == [[1, 2]]  # 2 log 0.57 is more than log 0.25, and 10 log 0.6 is not
    assert float(found.scores) == pytest.approx(2 * math.log(0.57))


def test_prompts_that_are_settled_leave_the_batch():
    sure = torch.tensor([[0.01, 0.01, 0.98], [0.6, 0.39, 0.01], [0.4, 0.3, 0.3]]).log()  # after 0 the end is certain
    rows = []

    def watched(ids):
        rows.append(len(ids))
        return sure[ids]

    found = beam_search(FunctionSteps(watched, [[0], [1]]), end_id=2, num_beams=2, max_new_tokens=4, length_penalty=0.0)
    assert found.best(with_end=True)[0] == [2]
    assert found.best(with_end=True)[1] == [0, 2]  # 0.588; the other beam alive is worse already
    assert rows == [2, 2]  # two prompts, then two beams of the second


@pytest.mark.parametrize(("power", "early"), [(0.0, False), (1.0, True), (2.0, True)])
def test_one_beam_is_greedy(power, early):
    toy, prompts = Toy(6, 1), [[0], [1, 2], [5, 5, 5], [3]]
    beams = beam_search(
        toy.steps(prompts), end_id=5, num_beams=1, max_new_tokens=9, length_penalty=power, early_stopping=early
    )
    expected = greedy(toy.steps(prompts), end_id=5, max_new_tokens=9)
    assert beams.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(beams.scores, expected.scores / expected.lengths**power)
    assert torch.equal(beams.lengths, expected.lengths)
    assert torch.equal(beams.finished, expected.finished)
    assert len(set(beams.lengths.flatten().tolist())) > 1


def test_rows_of_a_batch_are_what_they_are_alone():
    toy, prompts = Toy(6, 2), [[0], [1, 2], [5, 5, 5], [3], [2, 4]]
    settings = {"end_id": 5, "num_beams": 4, "max_new_tokens": 8, "num_return": 3, "groups": 2, "diversity": 0.7}
    together = beam_search(toy.steps(prompts), **settings)
    for row, prompt in enumerate(prompts):
        alone = beam_search(toy.steps([prompt]), **settings)
        assert alone.answers() == together.answers()[row : row + 1]
        torch.testing.assert_close(alone.scores, together.scores[row : row + 1])


@pytest.mark.parametrize(
    ("beams", "groups", "diversity"), [(6, 2, 0.0), (6, 2, 0.8), (6, 3, 2.0), (6, 6, 0.5), (12, 2, 1.5)]
)
@pytest.mark.parametrize("ends", [[5], [0, 5]])
def test_diverse_groups_by_hand(beams, groups, diversity, ends):
    toy, prompts = Toy(6, 7, scale=1.0), [[0], [1, 2], [3, 3, 1]]
    found = beam_search(
        toy.steps(prompts), end_id=ends, num_beams=beams, max_new_tokens=6, num_return=beams, groups=groups,
        diversity=diversity,
    )  # fmt: skip
    for row, prompt in enumerate(prompts):
        answers = search_by_hand(toy, prompt, ends, beams, 6, 1.0, groups, diversity)
        compare(found, row, sorted(itertools.chain(*answers), key=lambda answer: -answer[0]))


def test_diversity_makes_answers_differ_and_scores_stay_the_models():
    toy = Toy(6, 7, scale=1.0)
    settings = {"end_id": None, "num_beams": 4, "max_new_tokens": 5, "num_return": 4, "groups": 4}
    same = beam_search(toy.steps([[0]]), **settings)
    assert len({tuple(ids) for ids in same.answers()[0]}) == 1  # four greedy searches
    other = beam_search(toy.steps([[0]]), **settings, diversity=50.0)
    assert all(len(set(column)) == 4 for column in zip(*other.answers()[0], strict=True))
    expected = [toy.score([0], ids) / 5 for ids in other.answers()[0]]
    np.testing.assert_allclose(other.scores[0], expected)


def test_two_answers_of_two_groups_are_one_of_each():
    toy = Toy(6, 11, scale=1.0)
    settings = {"end_id": 5, "num_beams": 4, "max_new_tokens": 6, "groups": 2, "diversity": 5.0}
    first, second = search_by_hand(toy, [0], [5], 4, 6, 1.0, 2, 5.0)
    found = beam_search(toy.steps([[0]]), **settings, num_return=2)
    compare(found, 0, sorted([first[0], second[0]], key=lambda answer: -answer[0]))
    assert first[1][0] > second[0][0]  # by score alone both would be of the first group


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=17, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    gpt = transformers.GPT2LMHeadModel(config).eval()
    for weight in gpt.parameters():
        weight.data.mul_(3)
    return gpt


@pytest.mark.parametrize(("ours", "theirs"), [(False, "never"), (True, True), ("heuristic", False)])
def test_searches_of_transformers(ours, theirs):
    gpt = gpt2()
    prompts = torch.randint(0, 17, (4, 3), generator=torch.Generator().manual_seed(1))
    for power, ends, shortest in itertools.product((0.0, 1.0, 2.0, -1.0), ([9], [3, 9]), (0, 4)):
        limits = {"max_new_tokens": 9, "min_new_tokens": shortest, "num_beams": 4, "length_penalty": power}
        reference = gpt.generate(
            prompts, do_sample=False, eos_token_id=ends, pad_token_id=16, early_stopping=theirs, **limits,
            num_return_sequences=3, attention_mask=torch.ones_like(prompts), output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        if ours is False and power < 0:
            continue  # "never" of transformers takes the present length there, which is no bound
        found = beam_search(
            FunctionSteps(lambda ids: gpt(ids).logits, prompts),
            end_id=ends,
            early_stopping=ours,
            num_return=3,
            **limits,
        )
        answers = found.tokens.flatten(0, 1).masked_fill(found.tokens.flatten(0, 1) < 0, 16)
        assert answers.tolist() == reference.sequences[:, 3:].tolist()
        torch.testing.assert_close(found.scores.flatten(), reference.sequences_scores, rtol=1e-5, atol=1e-5)


def test_fewer_answers_than_asked_for():
    only = torch.tensor([[-INF, 0.0, -INF], [-INF, -INF, 0.0], [0.0, 0.0, 0.0]])  # 0 -> 1 -> the end, nothing else
    found = beam_search(
        FunctionSteps(lambda ids: only[ids], [[0]]), end_id=2, num_beams=3, max_new_tokens=5, num_return=3
    )
    assert found.answers(with_end=True) == [[[1, 2]]]
    assert found.lengths.tolist() == [[2, 0, 0]]
    assert found.finished.tolist() == [[True, False, False]]
    assert found.scores.tolist() == [[0.0, -INF, -INF]]


def test_more_beams_than_tokens():
    toy = Toy(2, 0)
    found = beam_search(toy.steps([[0], [1]]), end_id=None, num_beams=8, max_new_tokens=3, num_return=8)
    for row, prompt in enumerate([[0], [1]]):
        answers = [(s / 3, ids) for s, ids in every_answer(toy, prompt, [], 3)]
        compare(found, row, sorted(answers, key=lambda answer: -answer[0]))


def test_adjust_sees_the_prefix_of_every_beam():
    toy = Toy(5, 3)
    found = beam_search(
        toy.steps([[0], [1]]), end_id=4, num_beams=6, max_new_tokens=6, num_return=6,
        adjust=lambda tokens, log_probs: no_repeat_ngram(tokens, log_probs, 1),
    )  # fmt: skip
    for prompt, answers, scores in zip([[0], [1]], found.answers(with_end=True), found.scores.tolist(), strict=True):
        assert answers
        for ids, score in zip(answers, scores, strict=False):
            assert len(set(ids)) == len(ids)
            assert score == pytest.approx(toy.score(prompt, ids) / len(ids))


def test_half_precision_logits_and_no_gradient():
    table = Toy(5, 3).table[0].bfloat16().requires_grad_()
    found = beam_search(FunctionSteps(lambda ids: table[0][ids], [[0]]), end_id=4, num_beams=3, max_new_tokens=4)
    assert found.scores.dtype == torch.float32
    assert not found.scores.requires_grad


def test_messages():
    toy = Toy(5, 0)

    def run(**settings):
        return beam_search(toy.steps([[0]]), **{"end_id": 4, "num_beams": 4, "max_new_tokens": 3, **settings})

    for settings, message in [
        ({"num_beams": 0}, "num_beams >= 1 and num_return between 1 and it; got 0 and 1"),
        ({"num_return": 5}, "got 4 and 5"),
        ({"groups": 3}, "groups must divide num_beams; got 3 groups for 4 beams"),
        ({"diversity": 1.0}, "diversity must be >= 0 and acts between groups; got 1.0 with groups=1; give groups=2"),
        ({"diversity": -1.0, "groups": 2}, "got -1.0 with groups=2"),
        ({"length_penalty": INF}, "length_penalty must be finite, got inf"),
        ({"early_stopping": "never"}, "early_stopping must be False, True or \"heuristic\"; got 'never'"),
        ({"end_id": -1}, "beam_search: end_id -1 lies outside the vocabulary of 5"),
        ({"max_new_tokens": 0}, "beam_search needs max_new_tokens >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(**settings)

    def breaking(ids):
        logits = toy(ids)
        return logits.masked_fill((ids[:, :1] == 1)[..., None] & (ids.shape[1] == 3), math.nan)

    with pytest.raises(ValueError, match=r"beam_search: the logits of row 1 at step 2 hold nan"):
        beam_search(FunctionSteps(breaking, [[0], [1]]), end_id=None, num_beams=2, max_new_tokens=5)
