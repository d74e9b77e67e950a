r"""Capture: any intermediate value of any module by its address, without a change to the model.

    with capture(model, ["encoder.layer.*.attention.self:attention", "classifier:in"], grad=True) as caught:
        model(**batch).loss.backward()
    caught["encoder.layer.0.attention.self:attention"].grad

An address is a module's name as in `model.named_modules()`, a colon, and what is asked for:

    NAME:out           what the module returns (the default)
    NAME:in            its argument, or a dict of its arguments by name; NAME:in.hidden_states one of them
    NAME:attention     what every softmax and `scaled_dot_product_attention` inside it weighs with, before dropout (1)
    NAME:locals.probs  the local variable `probs` of its forward, as it is when forward returns

In a name `*` stands for anything without a dot, `**` for anything, `?` for one character; the empty name is the model.
Of fused attention no weights exist in memory: (1) computes softmax(q k^T scale + mask) beside it, and with `grad=True`
instead of it, so that the weights lie on the way to the output (equal to rounding; dropout then draws other numbers).

Without `grad` the tensors are detached and share memory with the model's: `clone=True` protects them from operations
in place. A recomputation by checkpointing is not a second call. Functions of torch.compile run eager inside the block.
Hooks, modes and the profiling hook (which `locals` needs, and which no profiler may hold) are gone after the block,
whatever ends it.

Source: kexue.fm/archives/6575 (2019), where a function of the backend reaches any tensor that a layer keeps.
Shapes: those of the model.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from danlu.train._capture_address import Address, find
from danlu.train._capture_watch import AttentionWatch, LocalsWatch, in_backward

__all__ = ["Captured", "capture", "capture_call"]


class Captured(Mapping[str, Any]):
    """What a `capture` block has caught: address -> value of the one call, `calls(address)` for all of them."""

    def __init__(self, addresses: Sequence[str], grad: bool, clone: bool) -> None:
        """Made by `capture`.

        Args:
            addresses: all that may be caught.
            grad: keep tensors in their graph, and their gradients.
            clone: copy each tensor.
        """
        self._values: dict[str, list[Any]] = {address: [] for address in addresses}
        self._grad, self._clone = grad, clone
        self.names_seen: dict[str, list[str]] = {}  # local names of a forward that has no such variable

    def __getitem__(self, address: str) -> Any:
        """The value of an address that was met once.

        Raises:
            KeyError: no such address, or nothing was caught there.
            ValueError: it was caught several times.
        """
        values = self.calls(address)
        if len(values) > 1:
            raise ValueError(
                f"{address!r} was met {len(values)} times in the block; calls({address!r}) gives all of them, in order"
            )
        return values[0]

    def calls(self, address: str) -> list[Any]:
        """All values of an address, in the order of the calls.

        Raises:
            KeyError: no such address, or nothing was caught there.
        """
        if address not in self._values:
            near = get_close_matches(address, self._values, 3, 0.3) or list(self._values)[:3]
            raise KeyError(f"{address!r} was not asked for; near it: {', '.join(near)}")
        if not self._values[address]:
            raise KeyError(self._why_nothing(address))
        return self._values[address]

    def __iter__(self) -> Iterator[str]:
        """The addresses at which something was caught."""
        return (address for address, values in self._values.items() if values)

    def __len__(self) -> int:
        """How many addresses hold something."""
        return sum(bool(values) for values in self._values.values())

    def table(self) -> str:
        """One line for each value: address, shape and dtype of its first tensor."""
        lines = []
        for address in self:
            for value in self._values[address]:
                first = next(tensors(value), None)
                shape = type(value).__name__ if first is None else f"{tuple(first.shape)} {first.dtype}"
                lines.append(f"{address}  {shape}")
        return "\n".join(lines)

    def record(self, address: str, value: Any) -> None:
        """Take in one value, unless it belongs to a recomputation inside a backward pass."""
        if in_backward():
            return
        floats = [t for t in tensors(value) if t.is_floating_point() or t.is_complex()]
        if self._grad and floats and not any(t.requires_grad for t in floats):
            raise RuntimeError(
                f"{address!r} has no gradient: nothing before it requires one, or it was computed under no_grad; "
                "let an input or a weight require a gradient, or pass grad=False"
            )
        self._values[address].append(mapped(value, self._keep))

    def _keep(self, tensor: Tensor) -> Tensor:
        if self._grad:
            if tensor.requires_grad:
                tensor.retain_grad()
            return tensor
        return tensor.detach().clone() if self._clone else tensor.detach()

    def _why_nothing(self, address: str) -> str:
        if address in self.names_seen:
            wanted, seen = address.rpartition(".")[2], self.names_seen[address]
            near = get_close_matches(wanted, seen, 3, 0.3) or seen
            return f"{address!r}: forward has no variable {wanted!r} when it returns; near it: {', '.join(near)}"
        if address.endswith(":attention"):
            return (
                f"{address!r}: no softmax and no scaled_dot_product_attention ran inside this module; name the module "
                "that computes the attention, with attention that is not a kernel of its own"
            )
        return f"{address!r} was not met: this module was not called inside the block"


@contextmanager
def capture(
    model: nn.Module, patterns: str | Sequence[str], grad: bool = False, clone: bool = False
) -> Iterator[Captured]:
    """Inside the block, everything that the addresses name is kept whenever the model runs.

    Args:
        model: any module, compiled ones too (they run eager inside the block).
        patterns: addresses, see the module; `*`, `**` and `?` in their names.
        grad: keep the values in their graph and retain their gradients.
        clone: copy every value when it is caught; not together with `grad`.

    Returns:
        A context whose value is `Captured`.

    Raises:
        ValueError: no module has such a name (the message lists near ones), an unknown kind of value, an argument that
            forward does not have, or `grad` together with `clone`.
        RuntimeError: inside a compiled function, for a scripted module, or `locals` while a profiler runs.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with capture(model, ["0", "*:in"]) as caught:
    ...     answer = model(torch.zeros(4, 2))
    >>> list(caught), caught["1:in"].shape
    (['0:out', '0:in', '1:in'], torch.Size([4, 3]))
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "capture inside a compiled function finds neither hooks nor frames; put the block around the call of the "
            "compiled function, which then runs eager"
        )
    if grad and clone:
        raise ValueError("grad=True keeps the very tensors that the model uses, clone=True copies; choose one")
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    addresses = find(model, [patterns] if isinstance(patterns, str) else patterns)
    caught = Captured([a.key for a in addresses], grad, clone)
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        attention = [a for a in addresses if a.kind == "attention"]
        if attention:
            watch = AttentionWatch(caught.record, grad)
            stack.enter_context(watch)
            for a in attention:
                _around(stack, a, watch)
        names = [a for a in addresses if a.kind == "locals"]
        if names:
            frames = LocalsWatch(caught.record, caught.names_seen)
            stack.enter_context(frames)
            for a in names:
                frames.add(a)
                _around(stack, a, frames)
        for a in addresses:
            if a.kind == "out":
                stack.callback(_hook_out(a, caught).remove)
            elif a.kind == "in":
                stack.callback(_hook_in(a, caught).remove)
        yield caught


def capture_call(
    model: nn.Module, patterns: str | Sequence[str], *args: Any, grad: bool = False, clone: bool = False, **kwargs: Any
) -> tuple[Any, Captured]:
    """One call of the model and what it met on the way.

    Args:
        model: as for `capture`.
        patterns: as for `capture`.
        args: the model's arguments.
        grad: as for `capture`.
        clone: as for `capture`.
        kwargs: the model's named arguments; one called grad or clone needs `capture`.

    Returns:
        What the model returns, and the values.

    Raises:
        ValueError: as for `capture`.
        RuntimeError: as for `capture`.

    >>> answer, caught = capture_call(nn.Sequential(nn.ReLU(), nn.Tanh()), "0", torch.tensor([-1.0, 2.0]))
    >>> caught["0:out"]
    tensor([0., 2.])
    """
    with capture(model, patterns, grad, clone) as caught:
        output = model(*args, **kwargs)
    return output, caught


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


def mapped(value: Any, fn: Any) -> Any:
    """The same nesting, of plain tuples, lists and dicts, with fn applied to each tensor."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping):
        return {key: mapped(part, fn) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return (tuple if isinstance(value, tuple) else list)(mapped(part, fn) for part in value)
    return value


def _hook_out(address: Address, caught: Captured) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        caught.record(address.key, output)

    return address.module.register_forward_hook(hook)


def _hook_in(address: Address, caught: Captured) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        caught.record(address.key, address.argument(args, kwargs))

    return address.module.register_forward_pre_hook(hook, with_kwargs=True)


def _around(stack: ExitStack, address: Address, watch: AttentionWatch | LocalsWatch) -> None:
    """Tell a watch when the module's forward begins and ends, an exception included."""

    def before(module: nn.Module, args: Any) -> None:
        watch.begin(address)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        watch.end()

    stack.callback(address.module.register_forward_pre_hook(before).remove)
    stack.callback(address.module.register_forward_hook(after, always_call=True).remove)
