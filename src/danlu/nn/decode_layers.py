r"""One new token of each row through all layers of a transformer in a single compiled call.

    pre-norm     x = x + W_o attend(W_qkv norm(x));          x = x + W_2 act(W_1 norm(x))                     (1)
    post-norm    x = norm(x + W_o attend(W_qkv x));          x = norm(x + W_2 act(W_1 x))                     (2)

A step of decoding does so little between two readings of weights that the time of a small model goes into the calls
themselves. `DecodeLayers` hands a whole stack to the kernel (numba, pip install "danlu[fast]") and keeps the cache in
step. Whoever uses it asks `takes` first and runs the ordinary modules where the answer is no: prompts, many rows,
other devices, no kernel. What the ordinary modules compute is the reference.

Source: (1) Radford et al., 2019 (GPT-2); (2) Vaswani et al., 2017, arXiv:1706.03762.
Shapes: M rows of one token each, D features, H heads, K and V features of a key and a value, F inner features, L
layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.activations import activation_name
from danlu.nn._decode import decode_kernel
from danlu.nn.kv_cache import KVCache
from danlu.nn.packed_linear import KERNEL_ROWS, PackedLinear, kernel_rows

__all__ = ["DecodeLayer", "DecodeLayers"]


@dataclass(frozen=True)
class DecodeLayer:
    """Weights of one layer.

    Args:
        joined: D to H (2 K + V), query, key and value side by side (`PackedLinear.joined`).
        output: H V to D.
        input: D to F.
        inner: F to D.
        attention_norm: gain and shift (D,) of the norm of attention.
        feed_forward_norm: gain and shift (D,) of the norm of the feed-forward layer.
    """

    joined: PackedLinear
    output: PackedLinear
    input: PackedLinear
    inner: PackedLinear
    attention_norm: tuple[Tensor, Tensor]
    feed_forward_norm: tuple[Tensor, Tensor]


class DecodeLayers:
    """Eqs. (1) and (2) for layers of equal sizes, weights as they are when it is made.

    Args:
        layers: the stack, first layer first.
        num_heads: heads H.
        key_dim: features K of a key.
        eps: of the layer norms.
        activation: a name of `danlu.math.activations`.
        post_norm: eq. (2) instead of (1).
        scale: factor of the scores; None: 1 / sqrt(K).

    Raises:
        ValueError: no layers, sizes or dtypes that do not fit together, an activation the kernel does not have.

    >>> import torch
    >>> def linear(n, k):
    ...     return PackedLinear(torch.zeros(n, k), bias=torch.zeros(n))
    >>> norm = (torch.ones(2), torch.zeros(2))
    >>> layer = DecodeLayer(linear(6, 2), linear(2, 2), linear(3, 2), linear(2, 3), norm, norm)
    >>> stack, cache = DecodeLayers([layer], num_heads=1, key_dim=2), KVCache(1, 1, 1, 2, 2, capacity=4)
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> bool(stack(x, cache).equal(x)) if stack.takes(x, cache) else True  # zero weights add nothing
    True
    """

    def __init__(
        self,
        layers: Sequence[DecodeLayer],
        num_heads: int,
        key_dim: int,
        eps: float = 1e-5,
        activation: str | None = "gelu_tanh",
        post_norm: bool = False,
        scale: float | None = None,
    ) -> None:
        if not layers:
            raise ValueError("DecodeLayers needs at least one layer")
        first = layers[0]
        dim, wide = first.joined.in_features, first.joined.out_features
        inner, width = first.input.out_features, first.output.in_features
        for i, layer in enumerate(layers):
            parts = (layer.joined, layer.output, layer.input, layer.inner)
            shapes = [(part.out_features, part.in_features) for part in parts]
            norms = [tuple(vector.shape) for vector in (*layer.attention_norm, *layer.feed_forward_norm)]
            fits = shapes == [(wide, dim), (dim, width), (inner, dim), (dim, inner)] and norms == [(dim,)] * 4
            if not fits or 2 * num_heads * key_dim + width != wide or width % num_heads:
                raise ValueError(
                    f"layer {i} does not fit {num_heads} heads with keys of {key_dim} and the sizes of layer 0: "
                    f"weights (N, K) are {shapes}, norms {norms}"
                )
            if {part.weight.dtype for part in parts} != {first.joined.weight.dtype}:
                raise ValueError(
                    f"layer {i} mixes dtypes: {[str(part.weight.dtype) for part in parts]}; pack all in one"
                )
        self.dtype, self.dim, self.eps, self.activation = (
            first.joined.weight.dtype,
            dim,
            eps,
            activation_name(activation),
        )
        self.num_heads, self.key_dim, self.value_dim, self.inner_dim = num_heads, key_dim, width // num_heads, inner
        self.post_norm, self.scale = post_norm, key_dim**-0.5 if scale is None else scale
        self._tensors = [_tensors(layer) for layer in layers]  # held, so that their addresses stay true
        if post_norm:  # norms one place further on
            pairs = [pair for row in self._tensors for pair in (row[8:10], row[10:12])]
            self._last, pairs = pairs[-1], [[None, None], *pairs[:-1]]
            self._tensors = [row[:8] + pairs[2 * i] + pairs[2 * i + 1] for i, row in enumerate(self._tensors)]
        self._addresses: np.ndarray | None = None  # of the tensors, (L, 12)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files hold: all but addresses."""
        return {**self.__dict__, "_addresses": None}

    def takes(self, x: Tensor, cache: KVCache) -> bool:
        """Whether a call with these would run: a kernel, one new token for each of a few rows, a cache that fits.

        Args:
            x: (M, D) hidden states.
            cache: keys and values so far.
        """
        kernel = decode_kernel()
        return (
            kernel is not None and self.activation in kernel.FORMS and x.shape == (cache.rows, self.dim)
            and len(x) <= self._rows() and cache.length < cache.capacity and kernel.attends(x, x)
            and cache.sizes == (len(self._tensors), self.num_heads, self.key_dim, self.value_dim, self.dtype)
        )  # fmt: skip

    def __call__(self, x: Tensor, cache: KVCache) -> Tensor:
        """Hidden states (M, D) after the last layer (and its norm in a post-norm stack); keys and values are stored.

        Args:
            x: (M, D) hidden states of one new token of each row, float32 or bfloat16.
            cache: keys and values so far; `advance` is left to the caller.

        Returns:
            (M, D) in the dtype of x.

        Raises:
            ValueError: `takes` would have said no.
        """
        if not self.takes(x, cache):
            raise ValueError(
                f"this stack takes up to {self._rows()} rows of {self.dim} features on the CPU and a cache of its "
                f"own sizes in {self.dtype}, with the kernel of danlu[fast]; got {tuple(x.shape)} on {x.device}. "
                "Ask takes() first, and run the ordinary layers where it says no"
            )
        kernel = decode_kernel()
        assert kernel is not None

        def run(
            places: list[list[int]], stored: int, capacity: int, length: int, table: Tensor | None, keep: Tensor | None
        ) -> Tensor:
            addresses = np.concatenate([self._own_addresses(), np.array(places, np.int64)], axis=1)
            sizes = (
                self.num_heads, self.key_dim, self.value_dim, self.inner_dim, stored, capacity, length,
                kernel.FORMS[self.activation], int(self.post_norm),
            )  # fmt: skip
            return kernel.through_layers(x.float(), addresses, sizes, self.eps, self.scale, self.dtype, table, keep)

        out = cache.step(run)
        if self.post_norm:
            weight, bias = self._last
            out = F.layer_norm(out, (self.dim,), weight, bias, self.eps)  # eq. (2)
        return out.to(x.dtype)

    def _rows(self) -> int:
        return kernel_rows(self.dtype) if self.dtype == torch.bfloat16 else KERNEL_ROWS  # float32 gains by one call

    def _own_addresses(self) -> np.ndarray:
        if self._addresses is None:
            rows = [[0 if tensor is None else tensor.data_ptr() for tensor in row] for row in self._tensors]
            self._addresses = np.array(rows, np.int64)
        return self._addresses


def _tensors(layer: DecodeLayer) -> list[Tensor | None]:
    """The twelve tensors of a layer in the kernel's order; vectors in float32."""
    row: list[Tensor | None] = []
    for part in (layer.joined, layer.output, layer.input, layer.inner):
        row += [part.weight, None if part.bias is None else part.bias.float().contiguous()]
    return row + [vector.detach().float().contiguous() for vector in (*layer.attention_norm, *layer.feed_forward_norm)]
