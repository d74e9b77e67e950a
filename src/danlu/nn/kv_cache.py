r"""Keys and values of the tokens so far, for decoding one token at a time, with beams that share their past.

    out_r = sum_{p < n} softmax_p(c q_r k_{a(r,p)}(p) + bias) v_{a(r,p)}(p)                                   (1)

a(r, p) is the stored row whose key at position p belongs to row r. It is r itself until `reorder` repeats or drops
rows, as beam search does at every step; then only the table a is rearranged and no key moves: a new token of row r
always lies in stored row r, which at this position belongs to nobody else. The compiled kernel follows the table
(numba, pip install "danlu[fast]"); it takes one query a row, the case of the decoding loop. Plain torch, which is the
reference and serves prompts and other devices, gathers through the table, or, without the kernel, moves the keys at
`reorder` instead.

Sums run in float32 for bfloat16 keys too. A query that may see no key gets zeros. DANLU_KERNELS=off switches the
kernel off.

Source: Vaswani et al., 2017, arXiv:1706.03762 (attention); the table of ancestors is ours.
Shapes: R rows, P stored rows, t new tokens, n positions in all, C capacity, H heads, K and V features of a key and a
value.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.nn._decode import decode_kernel

__all__ = ["KVCache"]


class KVCache:
    """Preallocated keys and values of every layer.

    One step: `store` and `attend` for each layer, then `advance`. `keep` (R, C) bool may be set after construction:
    False hides a stored position, the left padding of prompts.

    Args:
        num_layers: layers that attend.
        rows: sequences R at the start.
        num_heads: heads H.
        key_dim: features K of a key.
        value_dim: features V of a value.
        capacity: positions C that fit.
        dtype: of what is stored.
        device: where it is stored; None: the CPU.

    Raises:
        ValueError: a size below 1, or a dtype that is not a float.

    >>> cache = KVCache(1, rows=1, num_heads=1, key_dim=1, value_dim=1, capacity=2)
    >>> for value in (2.0, 4.0):
    ...     cache.store(0, torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), value))
    ...     cache.advance(1)
    >>> cache.attend(0, torch.zeros(1, 1, 1, 1), scale=1.0, causal=False)  # equal scores: the mean
    tensor([[[[3.]]]])
    """

    def __init__(
        self,
        num_layers: int,
        rows: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        sizes = (num_layers, rows, num_heads, key_dim, value_dim, capacity)
        if min(sizes) < 1 or not dtype.is_floating_point:
            raise ValueError(
                "KVCache needs num_layers, rows, num_heads, key_dim, value_dim and capacity of at least 1 and a "
                f"float dtype; got {', '.join(map(str, sizes))} and {dtype}"
            )
        self.rows, self.capacity, self.length = rows, capacity, 0
        self.keep: Tensor | None = None
        empty = partial(torch.empty, dtype=dtype, device=device)
        self._keys = [empty((rows, num_heads, capacity, key_dim)) for _ in range(num_layers)]
        self._values = [empty((rows, num_heads, capacity, value_dim)) for _ in range(num_layers)]
        self._filled = [0] * num_layers
        self._table: Tensor | None = None  # (R, C) a of eq. (1); None: every row is its own

    def store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values of t new tokens behind those of the steps before.

        Args:
            layer: which layer, from 0.
            keys: (R, t, H, K), any float dtype.
            values: (R, t, H, V).

        Raises:
            ValueError: shapes do not fit, or the capacity is exceeded.
        """
        stored, stored_values = self._keys[layer], self._values[layer]
        new, heads = keys.shape[1] if keys.ndim == 4 else 0, stored.shape[1]
        wanted = (self.rows, new, heads, stored.shape[3]), (self.rows, new, heads, stored_values.shape[3])
        if (keys.shape, values.shape) != wanted:
            raise ValueError(
                f"store needs keys {('R', 't', *wanted[0][2:])} and values {('R', 't', *wanted[1][2:])} with R = "
                f"{self.rows}; got {tuple(keys.shape)} and {tuple(values.shape)}"
            )
        self._demand_room(new)
        end = self.length + new
        stored[: self.rows, :, self.length : end] = keys.transpose(1, 2)
        stored_values[: self.rows, :, self.length : end] = values.transpose(1, 2)
        self._filled[layer] = end

    def read(self, layer: int, new: int) -> tuple[Tensor, Tensor]:
        """Keys (R, n, H, K) and values (R, n, H, V) of all steps before and of the `new` tokens just stored.

        Args:
            layer: which layer.
            new: tokens stored since the last `advance`.

        Returns:
            Views where every row is its own, copies otherwise.
        """
        keys, values = self._at(layer, self.length + new)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def attend(
        self, layer: int, queries: Tensor, scale: float, bias: Tensor | None = None, causal: bool = True
    ) -> Tensor:
        """Attention of queries over all that is stored in a layer, eq. (1).

        Args:
            layer: which layer.
            queries: (R, t, H, K) of the tokens just stored (with causal=False: of any tokens).
            scale: factor c of the scores.
            bias: added to the scores; broadcastable to (R, H, t, n).
            causal: the i-th of t queries sees no stored position after the i-th of the last t; False: all.

        Returns:
            (R, t, H, V) in the dtype of the queries.

        Raises:
            ValueError: shapes do not fit, or nothing is stored.
        """
        keys, values, length = self._keys[layer], self._values[layer], self._filled[layer]
        if queries.ndim != 4 or (queries.shape[0], *queries.shape[2:]) != (self.rows, keys.shape[1], keys.shape[3]):
            raise ValueError(
                f"attend needs queries (R, t, H, K) = ({self.rows}, t, {keys.shape[1]}, {keys.shape[3]}); got "
                f"{tuple(queries.shape)}"
            )
        rows, new, heads, _ = queries.shape
        if not length or (causal and new > length):
            raise ValueError(
                f"{new} queries for {length} stored positions: store the keys and values of a layer before it attends"
            )
        if bias is not None:
            bias = torch.broadcast_to(bias, (rows, heads, new, length))
        kernel = decode_kernel() if new == 1 else None
        if kernel is not None and kernel.attends(queries, keys):
            return kernel.attend(queries, keys, values, self._table, self.keep, bias, length, scale)
        mask = self._mask(new, length, causal)
        if bias is not None:
            bias = bias.to(queries.dtype)
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        keys, values = (part.to(queries.dtype) for part in self._at(layer, length))
        out = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, mask, scale=scale)
        if self.keep is not None:
            out = torch.nan_to_num(out)  # a query without any key
        return out.transpose(1, 2)

    @property
    def sizes(self) -> tuple[int, int, int, int, torch.dtype]:
        """Layers, heads, features of a key and of a value, dtype."""
        keys = self._keys[0]
        return len(self._keys), keys.shape[1], keys.shape[3], self._values[0].shape[3], keys.dtype

    def step(self, layers: Callable[..., Tensor]) -> Tensor:
        """Let a compiled stack store one new token of each row in every layer and attend to all so far.

        Args:
            layers: called with the addresses (L, 2) int64 of keys and values, stored rows, capacity, positions with
                the new
                one, the table and `keep`; danlu.nn.decode_layers makes it.

        Returns:
            What `layers` returns.

        Raises:
            ValueError: no room is left.
        """
        self._demand_room(1)
        addresses = [[k.data_ptr(), v.data_ptr()] for k, v in zip(self._keys, self._values, strict=True)]
        out = layers(addresses, len(self._keys[0]), self.capacity, self.length + 1, self._table, self.keep)
        self._filled = [self.length + 1] * len(self._keys)
        return out

    def advance(self, new: int) -> None:
        """Count `new` tokens as stored in every layer.

        Args:
            new: tokens t of this step.

        Raises:
            ValueError: a layer has not stored them.
        """
        if min(self._filled) < self.length + new:
            layer = self._filled.index(min(self._filled))
            raise ValueError(
                f"layer {layer} has stored {self._filled[layer] - self.length} new positions, advance({new}) counts "
                "more; call store for every layer first"
            )
        self.length += new

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from what row `rows[r]` was; rows may be repeated and dropped. No key is copied with the
        kernel.

        Args:
            rows: (R',) int64 in [0, R).

        Raises:
            ValueError: rows is not such a tensor.
        """
        if rows.ndim != 1 or rows.dtype != torch.int64 or not len(rows):
            raise ValueError(f"reorder needs rows (R',) int64, at least one; got {tuple(rows.shape)} {rows.dtype}")
        rows = rows.to(self._keys[0].device)
        if int(rows.min()) < 0 or int(rows.max()) >= self.rows:
            raise ValueError(f"reorder needs rows in [0, {self.rows}); got {int(rows.min())} to {int(rows.max())}")
        if self.keep is not None:
            self.keep = self.keep[rows]
        kernel = decode_kernel()
        if kernel is None or not kernel.attends(self._keys[0], self._keys[0]):
            for layer in range(len(self._keys)):
                keys, values = self._at(layer, self.capacity)
                self._keys[layer], self._values[layer] = keys[rows], values[rows]
            self._table, self.rows = None, len(rows)
            return
        table = self._table
        if table is None:
            table = torch.arange(self.rows, dtype=torch.int32)[:, None].expand(-1, self.capacity)
        table = table[rows]
        self.rows = len(rows)
        table[:, self.length :] = torch.arange(self.rows, dtype=torch.int32)[:, None]
        self._table = table
        if self.rows > len(self._keys[0]):
            self._keys = [self._taller(part) for part in self._keys]
            self._values = [self._taller(part) for part in self._values]

    def _demand_room(self, new: int) -> None:
        if self.length + new > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} positions; {self.length} are taken and {new} more do not fit. Make "
                "it with a greater capacity: prompt and new tokens together"
            )

    def _at(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys (R, H, n, K) and values (R, H, n, V) of the first n positions, through the table."""
        keys, values = self._keys[layer], self._values[layer]
        if self._table is None:
            return keys[: self.rows, :, :length], values[: self.rows, :, :length]
        owner, place = self._table[:, :length].long(), torch.arange(length)  # the table lives on the CPU only
        return keys.transpose(1, 2)[owner, place].transpose(1, 2), values.transpose(1, 2)[owner, place].transpose(1, 2)

    def _mask(self, new: int, length: int, causal: bool) -> Tensor | None:
        """True where a query may see a key, broadcastable to (R, H, t, n); None: everywhere."""
        device = self._keys[0].device
        mask = None
        if causal and new > 1:
            last = torch.arange(length - new, length, device=device)
            mask = torch.arange(length, device=device) <= last[:, None]  # (t, n)
        if self.keep is not None:
            keep = self.keep[:, None, None, :length].to(device)
            mask = keep if mask is None else mask & keep
        return mask

    def _taller(self, part: Tensor) -> Tensor:
        """Room for more rows; what is stored keeps its place."""
        taller = part.new_empty((self.rows, *part.shape[1:]))
        taller[: len(part), :, : self.length] = part[:, :, : self.length]
        return taller
