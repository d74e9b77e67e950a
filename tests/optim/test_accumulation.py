"""Gradient accumulation: against the big batch itself, masked losses and odd ends included; DDP; resuming; messages."""

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from two_processes import in_two_processes

from danlu.optim import Adafactor, GradientAccumulation, Lookahead


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tagger():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


X, Y = draw(12, 7, 5), torch.randint(3, (12, 7), generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([7, 1, 3, 2, 7, 7, 1, 1, 4, 6, 2, 5])
MASK = torch.arange(7) < LENGTHS[:, None]  # (12, 7)


def masked_mean(model, rows):
    keep = MASK[rows]
    return F.cross_entropy(model(X[rows])[keep], Y[rows][keep]), int(keep.sum())


OPTIMIZERS = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.05),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), 0.3, momentum=0.9),
    "adafactor": lambda m: Adafactor(m.parameters(), 0.05, min_dim_size_to_factor=1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_masked_small_batches_equal_the_big_one(name, max_norm):
    small, big = tagger(), tagger()
    accumulation = GradientAccumulation(OPTIMIZERS[name](small), 3, max_norm=max_norm)
    optimizer = OPTIMIZERS[name](big)
    for _ in range(4):
        stepped = []
        for rows in (range(4), range(4, 5), range(5, 12)):  # unequal in texts and in tokens
            accumulation.zero_grad()
            loss, tokens = masked_mean(small, list(rows))
            loss.backward()
            stepped.append(accumulation.step(tokens))
        assert stepped == [False, False, True]
        optimizer.zero_grad()
        masked_mean(big, list(range(12)))[0].backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(big.parameters(), max_norm)
        optimizer.step()
        for p, q in zip(small.parameters(), big.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_the_usual_equal_weights_do_not():
    small, big = tagger(), tagger()
    accumulation = GradientAccumulation(torch.optim.SGD(small.parameters(), 1.0), 3)
    for rows in (range(4), range(4, 5), range(5, 12)):
        accumulation.zero_grad()
        masked_mean(small, list(rows))[0].backward()
        accumulation.step()
    masked_mean(big, list(range(12)))[0].backward()
    torch.optim.SGD(big.parameters(), 1.0).step()
    assert max((p - q).abs().max() for p, q in zip(small.parameters(), big.parameters(), strict=True)) > 1e-2


def test_the_rest_of_an_epoch_counts_by_its_size():
    p = nn.Parameter(torch.zeros(1))
    accumulation = GradientAccumulation(torch.optim.SGD([p], 1.0), 4)
    for g, n in ((1.0, 3), (5.0, 1)):
        p.grad = torch.tensor([g])
        assert not accumulation.step(n)
    assert accumulation.flush()
    assert p.item() == -2
    assert not accumulation.flush()
    assert p.item() == -2


def test_a_batch_without_tokens_says_nothing():
    p = nn.Parameter(torch.zeros(1))
    accumulation = GradientAccumulation(torch.optim.SGD([p], 1.0), 2)
    p.grad = torch.tensor([torch.nan])
    accumulation.step(0)
    p.grad = torch.tensor([3.0])
    assert accumulation.step(torch.tensor(7))
    assert p.item() == -3


def test_parameters_without_gradients_stay_without():
    p, q = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))
    accumulation = GradientAccumulation(torch.optim.AdamW([p, q], 1.0), 2)
    for _ in range(2):
        accumulation.zero_grad()
        p.grad = torch.ones(1)
        accumulation.step()
    assert q.grad is None
    assert q.item() == 1  # not even decayed


def test_bfloat16_gradients_are_summed_in_float32():
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    accumulation = GradientAccumulation(torch.optim.SGD([p], 1.0), 512)
    for _ in range(512):
        p.grad = torch.ones_like(p)  # in bfloat16 the sum would stop at 256
        accumulation.step()
    assert p.item() == -1


def test_sparse_gradients_stay_sparse():
    table = nn.Embedding(6, 2, sparse=True)
    before = table.weight.detach().clone()
    accumulation = GradientAccumulation(torch.optim.SGD(table.parameters(), 1.0), 2)
    for ids in ([1, 1], [1, 4]):
        accumulation.zero_grad()
        table(torch.tensor(ids)).sum().backward()
        accumulation.step()
    expected = torch.zeros(6, 2)
    expected[1], expected[4] = 1.5, 0.5
    torch.testing.assert_close(before - table.weight.detach(), expected)


def test_schedulers_and_hooks_count_big_steps():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], 1.0)
    accumulation, lookahead = GradientAccumulation(optimizer, 2), Lookahead(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(6):
        p.grad = torch.ones(2)
        if accumulation.step():
            scheduler.step()
    assert lookahead.count == 3
    assert accumulation.param_groups[0]["lr"] == 0.5**3


@pytest.mark.parametrize("compat", [None, "bert4keras"])
def test_a_run_resumed_within_a_big_batch_repeats(compat):
    def feed(p, accumulation, steps):
        for step in steps:
            p.grad = draw(4, seed=step)
            accumulation.step(step + 1)

    def fresh(value):
        p = nn.Parameter(value.clone())
        return p, GradientAccumulation(torch.optim.AdamW([p], 0.1), 3, compat=compat)

    whole, one = fresh(draw(4))
    feed(whole, one, range(9))
    half, two = fresh(draw(4))
    feed(half, two, range(5))
    rest, three = fresh(half.detach())
    three.load_state_dict(copy.deepcopy(two.state_dict()))
    feed(rest, three, range(5, 9))
    assert torch.equal(whole, rest)


def test_messages():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0)
    with pytest.raises(ValueError, match=r"steps >= 1 and max_norm > 0 or None, got 0 and None"):
        GradientAccumulation(optimizer, 0)
    with pytest.raises(ValueError, match="compat must be None or 'bert4keras', got 'keras'"):
        GradientAccumulation(optimizer, 2, compat="keras")
    with pytest.raises(ValueError, match=r"distributed=True needs torch.distributed.init_process_group"):
        GradientAccumulation(optimizer, 2, distributed=True)
    accumulation = GradientAccumulation(optimizer, 2)
    with pytest.raises(ValueError, match=r"weight of a batch must be >= 0, got -1.0; give the number of its tokens"):
        accumulation.step(-1)
    with pytest.raises(ValueError, match=r"no state of GradientAccumulation, \['count'.*bare optimizer's goes into"):
        accumulation.load_state_dict(optimizer.state_dict())


def one_of_two(rank):
    model = nn.parallel.DistributedDataParallel(tagger())
    accumulation = GradientAccumulation(torch.optim.AdamW(model.parameters(), 0.05), 2, distributed=True)
    for _ in range(3):
        for rows in ((range(4), range(4, 5)), (range(5, 10), range(10, 12)))[rank]:
            accumulation.zero_grad()
            loss, tokens = masked_mean(model, list(rows))
            (loss * tokens).backward()
            accumulation.step(tokens)
    return [p.detach() for p in model.parameters()]


@pytest.mark.slow
def test_two_processes_equal_the_big_batch(tmp_path):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = in_two_processes(one_of_two, tmp_path)
    big = tagger()
    optimizer = torch.optim.AdamW(big.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        masked_mean(big, list(range(12)))[0].backward()
        optimizer.step()
    for weights in found:
        for p, q in zip(weights, big.parameters(), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-10, atol=1e-12)
