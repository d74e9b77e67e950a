r"""A linear layer for inference on the CPU whose weights are laid out once for the kernels that read them.

    y = act(x W^T + b)                                                                                        (1)

Few rows, the loop of decoding, wait for W to come from memory: a compiled kernel (numba, pip install "danlu[fast]")
reads it once, in large pages, as it is or in bfloat16. For more rows oneDNN multiplies with W in blocks of its own,
made at the first such call and kept, and applies the activation while the results are in cache; `F.linear` makes these
blocks anew at every call in bfloat16. On other devices, under torch.compile, and for other dtypes `F.linear` does the
work.

    float32 weights     M <= 1: kernel     else: oneDNN
    bfloat16 weights    M <= 4: kernel     else: oneDNN (AMX, AVX512)
    torch without oneDNN for the dtype     M <= 8: kernel     else: F.linear

Inputs may be float32 or bfloat16, whatever the weights are; outputs have their dtype; sums run in float32. There are no
parameters: W and b are buffers, `state_dict` holds them under nn.Linear's names, in the dtype of the packing.

Source: kernels of oneDNN (github.com/oneapi-src/oneDNN) and of danlu.nn._decode_kernel; (1) is kexue.fm's and
everybody's. Shapes: ... any leading axes, M rows in all, K inputs, N outputs.
"""

import copy
import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.activations import activation as activation_of
from danlu.math.activations import activation_name
from danlu.nn._decode import decode_kernel

__all__ = ["PackedLinear", "kernel_rows", "pack_linears"]

KERNEL_ROWS = 8  # above, arithmetic counts, and the kernel has only vectors
ROWS_BESIDE_ONEDNN = {torch.float32: 1, torch.bfloat16: 4}  # above, oneDNN is faster; with float32 inputs less exact
LARGE_PAGE = 1 << 21
MADV_HUGEPAGE = 14
POST_OPS = {  # activations that oneDNN applies while it writes: name, algorithm
    "linear": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "tanh": ("tanh", ""),
    "sigmoid": ("sigmoid", ""),
}


class PackedLinear(nn.Module):
    r"""Eq. (1) of the module for inference, with weights laid out once.

    Args:
        linear: an nn.Linear, or its weight (N, K).
        dtype: of the weights kept, float32 or bfloat16.
        activation: a name of `danlu.math.activations`, applied to the outputs; None: none.
        bias: (N,), with a weight; an nn.Linear brings its own.

    Raises:
        TypeError: `linear` is neither of the two.
        ValueError: another dtype, an unknown activation, a weight that is not (N, K), a bias that does not fit.
        RuntimeError: at the call, gradients are asked for.

    >>> layer = PackedLinear(torch.tensor([[1.0, 2.0]]), activation="relu", bias=torch.tensor([0.5]))
    >>> layer(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    tensor([[3.5000],
            [0.0000]])

    Source: see the module. Shapes: see the module.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        linear: nn.Linear | Tensor,
        dtype: torch.dtype = torch.float32,
        activation: str | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        if isinstance(linear, nn.Linear):
            weight, bias = linear.weight, linear.bias
        elif isinstance(linear, Tensor):
            weight = linear
        else:
            raise TypeError(f"PackedLinear takes an nn.Linear or a weight (N, K), got {type(linear).__name__}")
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"PackedLinear keeps weights in float32 or bfloat16, got {dtype}")
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            given = "" if bias is None else f" and bias {tuple(bias.shape)}"
            raise ValueError(
                f"PackedLinear needs a weight (N, K) and a bias (N,); got weight {tuple(weight.shape)}{given}"
            )
        self.activation = activation_name(activation)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", _in_large_pages(weight.detach().to(dtype)))
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype).clone())
        self._blocks: Tensor | None = None  # oneDNN's, made at the first call that needs them
        self._bias: Tensor | None = None  # the kernel's, in float32

    @classmethod
    def joined(cls, linears: Sequence[nn.Linear], dtype: torch.dtype = torch.float32) -> "PackedLinear":
        """One layer whose outputs are those of several side by side: one reading of x, one call.

        Args:
            linears: layers of the same number of inputs, all with a bias or all without.
            dtype: of the weights kept, float32 or bfloat16.

        Returns:
            A layer of N_1 + N_2 + ... outputs.

        Raises:
            ValueError: no layers, or layers that do not go together.

        >>> eye = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(eye.weight)
        >>> PackedLinear.joined([eye, eye])(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2., 1., 2.]])
        """
        inputs, biased = {linear.in_features for linear in linears}, {linear.bias is not None for linear in linears}
        if len(inputs) != 1 or len(biased) != 1:
            raise ValueError(
                "PackedLinear.joined needs layers of one number of inputs, all with a bias or all without; got "
                + (", ".join(f"{one.in_features} -> {one.out_features}, bias={one.bias is not None}" for one in linears)
                   or "none")
            )  # fmt: skip
        bias = torch.cat([linear.bias for linear in linears]) if biased == {True} else None
        return cls(torch.cat([linear.weight for linear in linears]), dtype, None, bias)

    def forward(self, x: Tensor) -> Tensor:  # (..., K) to (..., N)
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                "PackedLinear has no gradients and its input asks for one: call the model inside torch.no_grad(), or "
                "train the model as it was before pack_linears"
            )
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"this layer takes {self.in_features} features; got x {tuple(x.shape)}")
        weight = self.weight
        kinds = (torch.float32, torch.bfloat16)
        if (
            torch.compiler.is_compiling()
            or x.device.type != "cpu"
            or {x.dtype, weight.dtype} - set(kinds)
            or not x.numel()
        ):
            return self._plain(x)
        rows = x.numel() // self.in_features
        kernel = decode_kernel() if rows <= kernel_rows(weight.dtype) else None
        if kernel is not None:
            if self.bias is not None and self._bias is None:
                self._bias = self.bias.float()
            y = kernel.linear(x.reshape(rows, -1).float().contiguous(), weight, self._bias)  # eq. (1)
            return activation_of(self.activation)(y.to(x.dtype).view(*x.shape[:-1], -1))
        if not _onednn(weight.dtype):
            return self._plain(x)
        if self._blocks is None:
            self._blocks = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        name, algorithm = POST_OPS.get(self.activation, POST_OPS["linear"])
        y = torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), self._blocks, self.bias, name, [], algorithm)
        return (y if self.activation in POST_OPS else activation_of(self.activation)(y)).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes, as print(model) shows them."""
        return f"{self.in_features}, {self.out_features}, {self.weight.dtype}, activation={self.activation!r}"

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files hold: all but what is made anew when needed."""
        return {**self.__dict__, "_blocks": None, "_bias": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinear":
        """A copy with weights of its own."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__dict__ = copy.deepcopy(self.__getstate__(), memo)
        return other

    def _plain(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return activation_of(self.activation)(y).to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "PackedLinear":
        super()._apply(fn, recurse)
        self._blocks = self._bias = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._blocks = self._bias = None


def pack_linears(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Replace every nn.Linear inside a model by a `PackedLinear`, in place; it serves inference only from then on.

    Args:
        model: any module; evaluation mode is left as it is.
        dtype: of the weights kept, float32 or bfloat16.

    Returns:
        The model, or a PackedLinear if it is an nn.Linear itself. A layer used in two places stays one.

    >>> pack_linears(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    Sequential(
      (0): PackedLinear(2, 3, torch.float32, activation='linear')
      (1): ReLU()
    )
    """
    packed: dict[nn.Module, PackedLinear] = {}

    def pack(linear: nn.Linear) -> PackedLinear:
        if linear not in packed:
            packed[linear] = PackedLinear(linear, dtype)
        return packed[linear]

    if type(model) is nn.Linear:
        return pack(model)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out what it has seen
            if type(child) is nn.Linear:
                setattr(parent, name, pack(child))
    return model


def kernel_rows(dtype: torch.dtype) -> int:
    """Up to how many rows the compiled kernel serves a single product.

    Args:
        dtype: of the weights, float32 or bfloat16.

    Returns:
        A number of rows.

    >>> kernel_rows(torch.float32) in (1, KERNEL_ROWS)
    True
    """
    return ROWS_BESIDE_ONEDNN[dtype] if _onednn(dtype) else KERNEL_ROWS


def _onednn(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's packed product for this dtype on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _in_large_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy, in pages of 2 MiB where the system gives them: streams through memory meet fewer page ends."""
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or size < 2 * LARGE_PAGE:
        return tensor.contiguous().clone()
    room = torch.empty(size + LARGE_PAGE, dtype=torch.uint8)
    start = -room.data_ptr() % LARGE_PAGE
    try:
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(room.data_ptr() + start), ctypes.c_size_t(size), MADV_HUGEPAGE)  # may be refused
    except (OSError, AttributeError, TypeError):
        pass  # another system: the pages stay small
    return room[start : start + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
