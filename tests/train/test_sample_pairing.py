"""SamplePairing: the average of two examples, mixup by halves on average, the schedule of the paper, messages."""

import pytest
import torch
import torch.nn.functional as F

from danlu.train import Mix, mix_inputs, mix_targets, mixup_loss, sample_pairing, sample_pairing_on


def test_every_example_is_averaged_with_one_of_the_batch():
    x = torch.randn(5, 3, dtype=torch.float64)
    out = sample_pairing(x, torch.Generator().manual_seed(0))
    averages = (x[:, None] + x) / 2  # (5, 5, 3), all pairs
    found = (out[:, None] - averages).abs().amax(-1) < 1e-12
    partners = found.int().argmax(1)
    assert found.any(1).all() and sorted(partners.tolist()) == list(range(5))
    torch.testing.assert_close(out.sum(0), x.sum(0))
    assert torch.equal(out, sample_pairing(x, torch.Generator().manual_seed(0)))


def test_over_a_pair_it_is_mixup_with_one_half():
    """Both roles of a pair under their own label, and both labels by halves, are one loss: (y + y[p]) / 2."""
    x, y, p = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1]), torch.tensor([1, 0, 3, 2])
    mix = Mix(torch.tensor([0.5]), p)
    logits = mix_inputs(x, mix)  # the two rows of a pair are alike
    torch.testing.assert_close(F.cross_entropy(logits, y), mixup_loss(logits, mix_targets(y, mix)))


def test_schedule_of_the_paper():
    on = [sample_pairing_on(e, 400) for e in range(400)]
    assert not any(on[:100]) and not any(on[300:])
    assert on[100:120] == [True] * 8 + [False] * 2 + [True] * 8 + [False] * 2
    assert sum(on) == 160
    assert [sample_pairing_on(e, 3, 0, 0, 1, 0) for e in range(3)] == [True] * 3
    assert not any(sample_pairing_on(e, 150) for e in range(150))  # shorter than both ends


def test_messages():
    for wrong in ({"warmup": -1}, {"cooldown": -1}, {"on": 0}, {"off": -2}):
        with pytest.raises(ValueError, match=r"warmup, cooldown, off >= 0 and on >= 1; got"):
            sample_pairing_on(0, 10, **wrong)
    with pytest.raises(TypeError, match="token ids"):
        sample_pairing(torch.zeros(3, 2).long())
