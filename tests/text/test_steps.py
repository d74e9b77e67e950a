"""FunctionSteps: ragged prompts against each alone, rows kept and repeated, context, messages."""

import pytest
import torch

from danlu.text import FunctionSteps

V = 7
TABLE = torch.randn(V, V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def causal(ids, *shift):
    """Logits (R, T, V) of a model that looks at the last two tokens and at how many there are."""
    before = torch.nn.functional.pad(ids, (1, 0))[:, :-1]
    logits = TABLE[before, ids] + torch.arange(ids.shape[1])[:, None]
    return logits + shift[0][:, None, None] if shift else logits


def alone(prompt, *shift):
    return causal(torch.tensor([prompt]), *shift)[0, -1]


def test_ragged_prompts_are_each_alone():
    prompts = [[1, 2, 3], [4], [5, 6]]
    steps = FunctionSteps(causal, prompts, pad=0)
    assert (steps.rows, steps.vocab_size) == (3, V)
    torch.testing.assert_close(steps.step(None), torch.stack([alone(p) for p in prompts]))
    for token in ([6, 5, 4], [0, 0, 1], [2, 3, 2]):
        prompts = [[*p, t] for p, t in zip(prompts, token, strict=True)]
        torch.testing.assert_close(steps.step(torch.tensor(token)), torch.stack([alone(p) for p in prompts]))


def test_rows_are_kept_repeated_dropped_with_their_context():
    prompts, shift = [[1, 2], [3], [4, 5, 6]], torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    steps = FunctionSteps(causal, prompts, pad=0, context=[shift])
    steps.step(None)
    steps.reorder(torch.tensor([2, 0, 2, 2]))
    assert steps.rows == 4
    steps.step(torch.tensor([0, 1, 2, 3]))
    steps.reorder(torch.tensor([3, 1]))
    found = steps.step(torch.tensor([5, 5]))
    expected = [alone([4, 5, 6, 3, 5], shift[2:]), alone([1, 2, 1, 5], shift[:1])]
    torch.testing.assert_close(found, torch.stack(expected))


def test_last_position_alone_and_prompts_of_no_tokens():
    lengths = []

    def last(ids):
        lengths.append(ids.shape[1])
        return torch.eye(V)[ids.sum(1) % V]

    steps = FunctionSteps(last, torch.zeros(2, 0, dtype=torch.int32))
    assert steps.vocab_size == V
    assert steps.step(None).argmax(1).tolist() == [0, 0]
    assert steps.step(torch.tensor([3, 4])).argmax(1).tolist() == [3, 4]
    assert steps.vocab_size == V
    assert lengths == [0, 1]  # asked once for each length


def test_short_rows_are_filled_with_the_id_given_and_nothing_is_recorded():
    seen, weight = [], torch.ones(V, requires_grad=True)

    def logits(ids):
        seen.append(ids.tolist())
        return torch.ones(*ids.shape, 1) * weight

    steps = FunctionSteps(logits, [[1, 2], [3]], pad=6)
    assert not steps.step(None).requires_grad
    steps.step(torch.tensor([4, 5]))
    assert seen == [[[1, 2], [3, 6]], [[1, 2, 4], [3, 5, 6]]]


def test_the_prompts_given_stay_as_they_are():
    prompts = torch.tensor([[1, 2], [3, 4]])
    steps = FunctionSteps(causal, prompts)
    steps.step(None)
    steps.step(torch.tensor([5, 6]))
    assert prompts.tolist() == [[1, 2], [3, 4]]


def test_messages():
    with pytest.raises(ValueError, match="there are no prompts"):
        FunctionSteps(causal, [])
    with pytest.raises(ValueError, match=r"the prompts have 1 to 2 tokens; give pad="):
        FunctionSteps(causal, [[1], [2, 3]])
    with pytest.raises(ValueError, match=r"integer tensor \(R, T\) or lists of ids; got \(3,\) of torch.int64"):
        FunctionSteps(causal, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"got \(1, 1\) of torch.float32"):
        FunctionSteps(causal, torch.tensor([[1.0]]))
    with pytest.raises(ValueError, match=r"must return \(R, T, V\) or \(R, V\) for ids \(1, 0\); got \(1, 0, 7\)"):
        FunctionSteps(lambda ids: torch.zeros(1, 0, V), torch.zeros(1, 0, dtype=torch.long)).step(None)
    with pytest.raises(ValueError, match="a context tensor has 1 rows for 2 prompts"):
        FunctionSteps(causal, [[1], [2]], context=[torch.zeros(1)])
    with pytest.raises(ValueError, match=r"must return \(R, T, V\) or \(R, V\) for ids \(1, 2\); got \(2, 7\)"):
        FunctionSteps(lambda ids: causal(ids)[0], [[1, 2]]).step(None)
    with pytest.raises(ValueError, match="the prompts differ in length but logits_fn returns"):
        FunctionSteps(lambda ids: causal(ids)[:, -1], [[1, 2], [3]], pad=0).step(None)
    steps = FunctionSteps(causal, [[1, 2]])
    steps.step(None)
    with pytest.raises(ValueError, match="taken before; make new ones"):
        steps.step(None)
