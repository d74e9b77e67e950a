"""What every layer, loss and function promises, written once; each room lists its rows in a file of its own."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One callable of a room.

    build() returns the module or function; inputs(dtype) returns its arguments, float tensors in that dtype, always
    the same values; shape is that of the first tensor it returns. What a method cannot do says so in a reason.
    """

    name: str
    build: Callable[[], Callable[..., Any]]
    inputs: Callable[[torch.dtype], tuple[Any, ...]]
    shape: tuple[int, ...] | None
    no_bfloat16: str = ""
    no_compile: str = ""
    bfloat16_tolerance: float = 0.05


def first_tensor(value: Any) -> Tensor:
    """The first tensor of an output that may be a tensor, a tuple, a list or a dict."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, dict) else value
    return next(first_tensor(item) for item in items)


def call(row: Row, dtype: torch.dtype = torch.float32) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
    """Build, cast, run: (callable, inputs, output), with a fixed global seed before building and before running."""
    torch.manual_seed(0)
    fn = row.build()
    if isinstance(fn, nn.Module):
        fn = fn.to(dtype)
    args = row.inputs(dtype)
    torch.manual_seed(0)
    return fn, args, fn(*args)


def check_shape_and_dtype(row: Row) -> None:
    _, _, out = call(row)
    tensor = first_tensor(out)
    if row.shape is not None:
        assert tuple(tensor.shape) == row.shape
    if tensor.is_floating_point():
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()


def check_bfloat16(row: Row) -> None:
    expected = first_tensor(call(row)[2]).float()
    got = first_tensor(call(row, torch.bfloat16)[2]).float()
    if not first_tensor(call(row)[2]).is_floating_point():
        return
    scale = expected.abs().max().clamp_min(1.0)
    assert (got - expected).abs().max() <= row.bfloat16_tolerance * scale


def check_compile(row: Row) -> None:
    fn, args, expected = call(row)
    torch._dynamo.reset()
    torch.manual_seed(0)
    got = torch.compile(fn, backend="aot_eager")(*args)
    torch.testing.assert_close(first_tensor(got), first_tensor(expected))


def check_state_dict_round_trip(row: Row) -> None:
    fn, args, expected = call(row)
    if not isinstance(fn, nn.Module):
        return
    torch.manual_seed(1)
    other = row.build()
    assert isinstance(other, nn.Module)
    other.load_state_dict(copy.deepcopy(fn.state_dict()))
    torch.manual_seed(0)
    torch.testing.assert_close(first_tensor(other(*args)), first_tensor(expected), rtol=0, atol=0)


def check_inputs_unchanged(row: Row) -> None:
    torch.manual_seed(0)
    fn = row.build()
    args = row.inputs(torch.float32)
    before = copy.deepcopy(args)
    fn(*args)
    for old, new in zip(before, args, strict=True):
        if isinstance(old, Tensor):
            torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)


def check_nothing_global_changes(row: Row) -> None:
    torch.manual_seed(0)
    fn = row.build()
    args = row.inputs(torch.float32)
    if isinstance(fn, nn.Module):
        fn.eval()  # dropout may draw in training; nothing may draw in evaluation
    state = torch.get_rng_state()
    fn(*args)
    assert torch.equal(torch.get_rng_state(), state), "the global random stream moved; take generator="
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


CHECKS = [
    check_shape_and_dtype,
    check_bfloat16,
    check_compile,
    check_state_dict_round_trip,
    check_inputs_unchanged,
    check_nothing_global_changes,
]
