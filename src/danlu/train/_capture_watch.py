"""What watches a forward pass for `capture`: calls of softmax and fused attention, and frames that return."""

import inspect
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from danlu.math.attention_normalize import attention_normalize
from danlu.math.precision import wide
from danlu.train._capture_address import Address

Record = Callable[[str, Any], None]

SOFTMAX = (torch.softmax, torch.special.softmax, F.softmax, Tensor.softmax)
FUSED = F.scaled_dot_product_attention

# A mode sees the outermost call of torch only, here all of multi-head attention. This is its body with the question
# "does anybody override me?" answered by no, so that it runs and the mode sees the calls inside. Nothing is patched.
_mha = F.multi_head_attention_forward
OPEN_MHA = types.FunctionType(
    _mha.__code__, {**_mha.__globals__, "has_torch_function": lambda _: False}, _mha.__name__, _mha.__defaults__
)
OPEN_MHA.__kwdefaults__ = _mha.__kwdefaults__


def in_backward() -> bool:
    """Whether a backward pass runs: a forward is then a recomputation."""
    return torch._C._current_graph_task_id() != -1


class AttentionWatch(TorchFunctionMode):
    """Records attention weights under the address of the innermost module that was asked for."""

    def __init__(self, record: Record, grad: bool) -> None:
        super().__init__()
        self.record, self.grad = record, grad
        self.inside: list[Address] = []

    def begin(self, address: Address) -> None:
        self.inside.append(address)

    def end(self) -> None:
        self.inside.pop()

    def keep(self, weights: Tensor) -> None:
        """Under each name of the innermost module, once also where its forward calls itself."""
        for key in dict.fromkeys(a.key for a in self.inside if a.module is self.inside[-1].module):
            self.record(key, weights)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.inside or in_backward():
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return OPEN_MHA(*args, **kwargs)
        if func is FUSED:
            if self.grad:
                weights, output = open_attention(*args, **kwargs)
                self.keep(weights)
                return output
            with torch.no_grad():
                self.keep(open_attention(*args, **kwargs)[0])
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in SOFTMAX:
            if "out" in kwargs:  # memory that will be used again, inside an autograd function
                if self.grad:
                    raise RuntimeError(
                        f"{self.inside[-1].key!r} computes dropout, softmax and products in one node, so its weights "
                        "have no gradient of their own; switch dropout off (model.eval() or probability 0), or pass "
                        "grad=False"
                    )
                result = result.clone()
            self.keep(result)
        return result


def open_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weights before dropout and output of `scaled_dot_product_attention`, in float32 or better."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    with torch.autocast(device, enabled=False):
        q, k, v = (wide(x) for x in (query, key, value))
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        mask = None
        if is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            mask = attn_mask
        elif attn_mask is not None:
            scores = scores + attn_mask
        weights = attention_normalize(scores, mask).to(dtype)
        return weights, (F.dropout(weights, dropout_p).to(v.dtype) @ v).to(dtype)


class LocalsWatch:
    """Records local variables of forwards when these return, through Python's profiling hook."""

    def __init__(self, record: Record, names_seen: dict[str, list[str]]) -> None:
        self.record, self.names_seen = record, names_seen
        self.wanted: dict[types.CodeType, list[Address]] = {}
        self.depth = 0

    def __enter__(self) -> "LocalsWatch":
        if sys.getprofile() is not None:
            raise RuntimeError(
                f"locals need Python's profiling hook, which {sys.getprofile()!r} holds; stop the profiler for this "
                "block"
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.depth:  # an interrupt that no hook was told of
            sys.setprofile(None)

    def add(self, address: Address) -> None:
        forward: Any = inspect.unwrap(type(address.module).forward)
        if not hasattr(forward, "__code__"):
            raise RuntimeError(f"{address.key!r}: the forward of this module is no Python function and has no locals")
        self.wanted.setdefault(forward.__code__, []).append(address)

    def begin(self, address: Address) -> None:
        if not self.depth:
            sys.setprofile(self._look)
        self.depth += 1

    def end(self) -> None:
        self.depth -= 1
        if not self.depth:
            sys.setprofile(None)

    def _look(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if event != "return" or frame.f_code not in self.wanted:
            return
        values = frame.f_locals
        for address in self.wanted[frame.f_code]:
            if values.get("self") is not address.module:
                continue
            if address.name in values:
                self.record(address.key, values[address.name])
            else:
                self.names_seen[address.key] = [name for name in values if name != "self"]
