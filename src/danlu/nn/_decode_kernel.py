r"""Compiled steps of decoding on CPU tensors: a few rows times a matrix, one query a row over a cache, whole layers.

    y_m = W x_m + b,   m < M small                                                                            (1)
    out_r = sum_p softmax_p(q_r k_{a(r,p)}(p) + bias) v_{a(r,p)}(p)                                           (2)
    h = norm(x);  x = r + W_o attend(W_qkv h);  h = norm(x);  x = r + W_2 act(W_1 h);  r = x or h             (3)

(1) and (2) read each number of W, or of the cache, once and do little with it: memory is what they wait for. So (1)
reads four rows of W at a time and asks for the next four beforehand, multiplies all x with them while they are near,
and takes W as it lies, in float32 or in bfloat16 (16 bits moved to the upper half of a float32). Sums run in float32.

The work is cut into small pieces, and each thread takes the next piece when it is done with one, so a thread that lost
its core for a while delays nobody. The threads are those of torch itself: compiled functions with C's calling
convention are handed to the OpenMP library that torch has loaded, which starts them within microseconds, waits as
torch's own operators do, and leaves no second pool to compete for the cores.

(3) is one token through all layers in a single call, the threads meeting at barriers: between two products nothing of
Python or torch runs, whose code the stream of weights pushes out of the caches. r = x makes pre-norm layers; r = h
post-norm ones, whose norms each move to the place behind, so that the first is none and the last is left to the
caller.

Source: (1) and (2) are the textbook's; the arrangement is ours.
Shapes: M rows of x, N outputs, K inputs; R rows, P stored rows, H heads, n positions, C capacity, D and V features.
"""

import ctypes
import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from danlu.math._machine_code import with_own_files

__all__ = ["FORMS", "attend", "attends", "linear", "through_layers"]

ir = cgutils.ir  # llvmlite's
PIECE = 64  # rows of W that a thread takes at a time
PAIRS = 4  # (row, head) pairs that it takes at a time
OPTIONS: dict[str, Any] = {"fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"}
ZERO, HALF, ONE, INFINITY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(np.inf)
KINDS = {torch.float32: np.float32, torch.bfloat16: np.uint16}  # of the numbers stored, as compiled code sees them
FORMS = {"linear": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "gelu_sigmoid": 4, "silu": 5}


def attends(queries: Tensor, keys: Tensor) -> bool:
    """Whether `attend` takes such queries and keys: CPU, float32 or bfloat16, no gradient asked for."""
    kinds = (torch.float32, torch.bfloat16)
    on_cpu = queries.device.type == "cpu" == keys.device.type
    return (
        on_cpu and queries.dtype in kinds and keys.dtype in kinds
        and not (queries.requires_grad and torch.is_grad_enabled()) and not torch.compiler.is_compiling()
    )  # fmt: skip


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Eq. (1): x (M, K) float32, weight (N, K) float32 or bfloat16, bias (N,) float32, contiguous; (M, N) float32."""
    out = torch.empty(len(x), len(weight))
    _run(
        _linear_of(weight.dtype),
        [
            x.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            len(x),
            *weight.shape,
        ],
        weight.numel(),
    )
    return out


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, table: Tensor | None, keep: Tensor | None, bias: Tensor | None,
    length: int, scale: float,
) -> Tensor:  # fmt: skip
    """Eq. (2): queries (R, 1, H, D), keys (P, H, C, D), values (P, H, C, V), table (R, C) int32 or None: a(r, p) = r,
    keep
    (R, C) bool, bias (R, H, 1, n) of any strides; (R, 1, H, V) in the dtype of the queries."""
    rows, _, heads, size = queries.shape
    stored, _, capacity, value_size = values.shape
    q = queries.float() * scale
    q = q.contiguous()
    out = torch.empty(rows, 1, heads, value_size)
    keep = None if keep is None else keep.contiguous()
    bias = None if bias is None else bias.float()
    strides = (0, 0, 0) if bias is None else (bias.stride(0), bias.stride(1), bias.stride(3))
    pointers = [0 if part is None else part.data_ptr() for part in (q, keys, values, out, table, keep, bias)]
    sizes = (rows, stored, heads, capacity, length, size, value_size)
    _run(_attend_of(keys.dtype), [*pointers, *sizes, *strides], rows * heads * length * (size + value_size))
    return out.to(queries.dtype)


def through_layers(
    x: Tensor, layers: np.ndarray, sizes: tuple[int, ...], eps: float, scale: float, dtype: torch.dtype,
    table: Tensor | None, keep: Tensor | None,
) -> Tensor:  # fmt: skip
    """Eq. (3) for one new token of each row, whose keys and values are also stored.

    x (M, D) float32; layers (L, 14) int64: addresses of the joined weight and bias of query, key and value, of the
    output's, of those of both products of the feed-forward layer (weights in `dtype`, biases float32), of gain and
    shift of the two norms (float32, 0: no norm), of the keys (P, H, C, K) and values (P, H, C, V); sizes are heads H,
    K, V, inner size F, stored rows P, capacity C, positions n with the new one, activation (`FORMS`) and 1 for r = h,
    else 0.
    """
    heads, key_size, value_size, inner = sizes[:4]
    rows, dim = x.shape
    if keep is not None:
        keep = keep.contiguous()
    x = x.contiguous().clone()
    spare, joined = torch.empty_like(x), torch.empty(rows, heads * (2 * key_size + value_size))
    seen, middle = torch.empty(rows, heads * value_size), torch.empty(rows, inner)
    counters, numbers = np.zeros(5 * len(layers), np.int64), np.array([eps, scale])
    pointers = [0 if part is None else part.data_ptr() for part in (x, spare, joined, seen, middle, table, keep)]
    addresses = [layers.ctypes.data, counters.ctypes.data, numbers.ctypes.data, _barrier]
    _run(_layers_of(dtype), [*pointers, *addresses, len(layers), rows, dim, *sizes], 1 << 30)
    return x


# --- torch's threads ---------------------------------------------------------------------------------------------


def _openmp() -> tuple[Any, int]:
    """`GOMP_parallel` of the library that torch has loaded, and where its barrier is; ImportError without it."""
    here = Path(torch.__file__).parent
    names = ["libgomp.so.1", *sorted(map(str, [*here.glob("lib/libgomp*"), *here.parent.glob("torch.libs/libgomp*")]))]
    for name in names:
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)  # only what is there already
        except (OSError, AttributeError):
            continue
        function = library.GOMP_parallel
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        barrier = ctypes.cast(library.GOMP_barrier, ctypes.c_void_p).value
        assert barrier
        return function, barrier
    raise ImportError("torch does not run on GNU OpenMP here")


_parallel, _barrier = _openmp()


def _run(function: Any, arguments: list[int], work: int) -> None:
    """Call a compiled function in as many threads as torch may use; they share the counter behind the arguments."""
    block = np.array([0, *arguments], dtype=np.int64)
    threads = min(torch.get_num_threads(), 1 + work // 20_000)
    if threads == 1:
        function.ctypes(block.ctypes.data)
    else:
        _parallel(function.address, block.ctypes.data, threads, 0)


def _compiled(function: Callable[..., None], kind: Any) -> Any:
    """A C function of one pointer for one kind of stored numbers, its machine code kept on disk where that works."""
    signature = types.void(types.voidptr)
    try:
        return numba.cfunc(signature, cache=True)(with_own_files(function, kind))
    except (RuntimeError, OSError, EOFError, pickle.PickleError):  # no folder, a full disk, a damaged cache
        return numba.cfunc(signature)(function)


# --- what numba lacks --------------------------------------------------------------------------------------------


@intrinsic
def _pointer(typing, number):  # type: ignore[no-untyped-def]
    """An integer as an address."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def _take(typing, address, count):  # type: ignore[no-untyped-def]
    """Add `count` to the int64 at an address, atomically, and return what it was."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return types.int64(types.voidptr, types.int64), generate


@intrinsic
def _prefetch(typing, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at an address; any address will do."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [builder.inttoptr(arguments[0], byte), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _wide(typing, number):  # type: ignore[no-untyped-def]
    """A float32 as it is, or the bits of a bfloat16 as a float32."""

    def same(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return arguments[0]

    def shift(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        bits = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(arguments[0], bits), bits(16)), ir.FloatType())

    return types.float32(number), same if number == types.float32 else shift


@intrinsic
def _power_of_two(typing, number):  # type: ignore[no-untyped-def]
    """2 ** number for a whole float32 between -126 and 127."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        bits = ir.IntType(32)
        exponent = builder.add(builder.fptosi(arguments[0], bits), bits(127))
        return builder.bitcast(builder.shl(exponent, bits(23)), ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def _narrow(typing, number, like):  # type: ignore[no-untyped-def]
    """A float32 as it is, or rounded to the bits of a bfloat16, as `like` has it."""

    def same(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return arguments[0]

    def cut(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.IntType(32)
        bits = builder.bitcast(arguments[0], kind)
        odd = builder.and_(builder.lshr(bits, kind(16)), kind(1))  # ties go to the even neighbour
        return builder.trunc(builder.lshr(builder.add(bits, builder.add(odd, kind(0x7FFF))), kind(16)), ir.IntType(16))

    return like(number, like), same if like == types.float32 else cut


@intrinsic
def _meet(typing, address):  # type: ignore[no-untyped-def]
    """Call the barrier at an address: no thread goes on before all are here."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.VoidType(), []).as_pointer()
        builder.call(builder.inttoptr(arguments[0], kind), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


LOG2_E = np.float32(1.4426950408889634)
SMALLEST = np.float32(-126)
C = [np.float32(0.6931471805599453**i / f) for i, f in enumerate([1, 1, 2, 6, 24, 120, 720])]
C0, C1, C2, C3, C4, C5, C6 = C


@numba.njit(inline="always", **OPTIONS)
def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0 to 2e-7 of itself, 0 below -87; plain arithmetic, so that loops become vectors."""
    y = x * LOG2_E
    whole = np.floor(max(y, SMALLEST) + HALF)
    f = max(y, SMALLEST) - whole
    series = C0 + f * (C1 + f * (C2 + f * (C3 + f * (C4 + f * (C5 + f * C6)))))
    return series * _power_of_two(whole) if y >= SMALLEST else ZERO


# --- a few rows times a matrix -----------------------------------------------------------------------------------


@numba.njit(**OPTIONS)
def _rows_times(w, x, bias, with_bias, y, low, high):  # type: ignore[no-untyped-def]
    m_all, size = x.shape
    four = low + (high - low) // 4 * 4
    base, step = w.ctypes.data, 4 * size * w.itemsize
    for n in range(low, four, 4):
        w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
        ahead = base + (n // 4 + 1) * step
        for p in range(0, step, 64):
            _prefetch(ahead + p)
        b0, b1, b2, b3 = ZERO, ZERO, ZERO, ZERO
        if with_bias:
            b0, b1, b2, b3 = bias[n], bias[n + 1], bias[n + 2], bias[n + 3]
        for m in range(0, m_all // 4 * 4, 4):
            x0, x1, x2, x3 = x[m], x[m + 1], x[m + 2], x[m + 3]
            s00, s01, s02, s03 = ZERO, ZERO, ZERO, ZERO
            s10, s11, s12, s13 = ZERO, ZERO, ZERO, ZERO
            s20, s21, s22, s23 = ZERO, ZERO, ZERO, ZERO
            s30, s31, s32, s33 = ZERO, ZERO, ZERO, ZERO
            for k in range(size):
                u0, u1, u2, u3 = _wide(w0[k]), _wide(w1[k]), _wide(w2[k]), _wide(w3[k])
                v0, v1, v2, v3 = x0[k], x1[k], x2[k], x3[k]
                s00 += u0 * v0
                s01 += u1 * v0
                s02 += u2 * v0
                s03 += u3 * v0
                s10 += u0 * v1
                s11 += u1 * v1
                s12 += u2 * v1
                s13 += u3 * v1
                s20 += u0 * v2
                s21 += u1 * v2
                s22 += u2 * v2
                s23 += u3 * v2
                s30 += u0 * v3
                s31 += u1 * v3
                s32 += u2 * v3
                s33 += u3 * v3
            y[m, n], y[m, n + 1], y[m, n + 2], y[m, n + 3] = s00 + b0, s01 + b1, s02 + b2, s03 + b3  # eq. (1)
            y[m + 1, n], y[m + 1, n + 1], y[m + 1, n + 2], y[m + 1, n + 3] = s10 + b0, s11 + b1, s12 + b2, s13 + b3
            y[m + 2, n], y[m + 2, n + 1], y[m + 2, n + 2], y[m + 2, n + 3] = s20 + b0, s21 + b1, s22 + b2, s23 + b3
            y[m + 3, n], y[m + 3, n + 1], y[m + 3, n + 2], y[m + 3, n + 3] = s30 + b0, s31 + b1, s32 + b2, s33 + b3
        for m in range(m_all // 4 * 4, m_all):
            x0 = x[m]
            s00, s01, s02, s03 = ZERO, ZERO, ZERO, ZERO
            for k in range(size):
                v0 = x0[k]
                s00 += _wide(w0[k]) * v0
                s01 += _wide(w1[k]) * v0
                s02 += _wide(w2[k]) * v0
                s03 += _wide(w3[k]) * v0
            y[m, n], y[m, n + 1], y[m, n + 2], y[m, n + 3] = s00 + b0, s01 + b1, s02 + b2, s03 + b3
    for n in range(four, high):
        w0 = w[n]
        for m in range(m_all):
            x0, s00 = x[m], ZERO
            for k in range(size):
                s00 += _wide(w0[k]) * x0[k]
            y[m, n] = s00 + bias[n] if with_bias else s00


@numba.njit(inline="always", **OPTIONS)
def _sigmoid(x):  # type: ignore[no-untyped-def]
    e = _exp(-abs(x))
    return (ONE if x >= ZERO else e) / (ONE + e)


P_ERF, A1, A2, A3, A4, A5 = (
    np.float32(v) for v in (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)
ROOT_HALF, ROOT, CUBE, STEEP = (np.float32(v) for v in (0.5**0.5, (2 / np.pi) ** 0.5, 0.044715, 1.702))


@numba.njit(inline="always", **OPTIONS)
def _normal(x):  # type: ignore[no-untyped-def]
    """The normal distribution function to 1e-7, by formula 7.1.26 of Abramowitz and Stegun."""
    z = abs(x) * ROOT_HALF
    t = ONE / (ONE + P_ERF * z)
    tail = HALF * t * (A1 + t * (A2 + t * (A3 + t * (A4 + t * A5)))) * _exp(-z * z)
    return ONE - tail if x >= ZERO else tail


@numba.njit(**OPTIONS)
def _activate(y, form):  # type: ignore[no-untyped-def]
    n = len(y)
    if form == 1:
        for i in range(n):
            y[i] = max(y[i], ZERO)
    elif form == 2:
        for i in range(n):
            y[i] *= _normal(y[i])
    elif form == 3:
        for i in range(n):
            x = y[i]
            y[i] = x * _sigmoid(2 * ROOT * (x + CUBE * x * x * x))
    elif form == 4:
        for i in range(n):
            y[i] *= _sigmoid(STEEP * y[i])
    elif form == 5:
        for i in range(n):
            y[i] *= _sigmoid(y[i])


@numba.njit(**OPTIONS)
def _product(counter, w, x, bias, with_bias, y, form, base, with_base):  # type: ignore[no-untyped-def]
    """y = act(x W^T + bias) + base, as many pieces of it as this thread gets."""
    while True:
        low = _take(counter, PIECE)
        if low >= len(w):
            break
        high = min(len(w), low + PIECE)
        _rows_times(w, x, bias, with_bias, y, low, high)
        for m in range(len(x)):
            if form:
                _activate(y[m, low:high], form)
            if with_base:
                ours, more = y[m, low:high], base[m, low:high]
                for i in range(high - low):
                    ours[i] += more[i]


@cache
def _linear_of(dtype):  # type: ignore[no-untyped-def]
    kind = KINDS[dtype]

    def run(block):  # type: ignore[no-untyped-def]
        a = carray(block, 8, np.int64)
        m, n, k = a[5], a[6], a[7]
        x, w = carray(_pointer(a[1]), (m, k), np.float32), carray(_pointer(a[2]), (n, k), kind)
        y = carray(_pointer(a[4]), (m, n), np.float32)
        bias = carray(_pointer(a[3]), n, np.float32)
        _product(block, w, x, bias, a[3] != 0, y, 0, y, False)

    return _compiled(run, kind)


# --- one query a row over the cache ------------------------------------------------------------------------------


@numba.njit(**OPTIONS)
def _look_back(q, keys, values, table, with_table, keep, with_keep, bias, with_bias, strides, n, out, low, high):  # type: ignore[no-untyped-def]
    heads, size = q.shape[1], q.shape[2]
    value_size = out.shape[2]
    scores = np.empty(n, np.float32)
    total_of = np.empty(value_size, np.float32)
    for pair in range(low, high):
        r, h = pair // heads, pair % heads
        query = q[r, h]
        top = -INFINITY
        for p in range(n):
            row = table[r, p] if with_table else r
            key = keys[row, h, p]
            s = ZERO
            for d in range(size):
                s += query[d] * _wide(key[d])
            if with_bias:
                s += bias[r * strides[0] + h * strides[1] + p * strides[2]]
            if with_keep and not keep[r, p]:
                s = -INFINITY
            scores[p] = s
            top = max(top, s)
        for d in range(value_size):
            total_of[d] = ZERO
        total = ZERO
        if top > -INFINITY:
            for p in range(n):
                e = _exp(scores[p] - top)
                scores[p] = e
                total += e
            for p in range(n):
                e = scores[p]
                if e == ZERO:
                    continue
                row = table[r, p] if with_table else r
                value = values[row, h, p]
                for d in range(value_size):
                    total_of[d] += e * _wide(value[d])
            inverse = np.float32(1) / total
            for d in range(value_size):
                total_of[d] *= inverse  # eq. (2)
        for d in range(value_size):
            out[r, h, d] = total_of[d]


@cache
def _attend_of(dtype):  # type: ignore[no-untyped-def]
    kind = KINDS[dtype]

    def run(block):  # type: ignore[no-untyped-def]
        a = carray(block, 18, np.int64)
        rows, stored, heads, capacity, n, size, value_size = a[8], a[9], a[10], a[11], a[12], a[13], a[14]
        q = carray(_pointer(a[1]), (rows, heads, size), np.float32)
        keys = carray(_pointer(a[2]), (stored, heads, capacity, size), kind)
        values = carray(_pointer(a[3]), (stored, heads, capacity, value_size), kind)
        out = carray(_pointer(a[4]), (rows, heads, value_size), np.float32)
        table = carray(_pointer(a[5]), (rows, capacity), np.int32)
        keep = carray(_pointer(a[6]), (rows, capacity), np.bool_)
        strides = a[15:18]
        reach = (rows - 1) * strides[0] + (heads - 1) * strides[1] + (n - 1) * strides[2] + 1
        bias = carray(_pointer(a[7]), reach, np.float32)
        while True:
            low = _take(block, PAIRS)
            if low >= rows * heads:
                break
            high = min(rows * heads, low + PAIRS)
            _look_back(q, keys, values, table, a[5] != 0, keep, a[6] != 0, bias, a[7] != 0, strides, n, out, low, high)

    return _compiled(run, kind)


# --- whole layers ------------------------------------------------------------------------------------------------


@numba.njit(**OPTIONS)
def _normed(x, gain, shift, with_norm, eps, h):  # type: ignore[no-untyped-def]
    rows, size = x.shape
    for m in range(rows):
        row, out = x[m], h[m]
        if not with_norm:
            for i in range(size):
                out[i] = row[i]
            continue
        mean, square = ZERO, ZERO
        for i in range(size):
            mean += row[i]
        mean /= np.float32(size)
        for i in range(size):
            d = row[i] - mean
            square += d * d
        inverse = ONE / np.sqrt(square / np.float32(size) + eps)
        for i in range(size):
            out[i] = (row[i] - mean) * inverse * gain[i] + shift[i]


@numba.njit(**OPTIONS)
def _remember(joined, keys, values, place, q, scale, low, high):  # type: ignore[no-untyped-def]
    """Of the pairs (row, head) from low to high: scale the queries, store keys and values of the new token."""
    heads, size, value_size = keys.shape[1], keys.shape[3], values.shape[3]
    for pair in range(low, high):
        r, h = pair // heads, pair % heads
        row, query, key, value = joined[r], q[r, h], keys[r, h, place], values[r, h, place]
        for d in range(size):
            query[d] = row[h * size + d] * scale
            key[d] = _narrow(row[(heads + h) * size + d], key[d])
        for d in range(value_size):
            value[d] = _narrow(row[2 * heads * size + h * value_size + d], value[d])


@cache
def _layers_of(dtype):  # type: ignore[no-untyped-def]
    kind = KINDS[dtype]

    def run(block):  # type: ignore[no-untyped-def]
        a = carray(block, 24, np.int64)
        counters, numbers, barrier = a[9], carray(_pointer(a[10]), 2, np.float64), a[11]
        layers, rows, dim, heads, size, value_size, inner = a[12], a[13], a[14], a[15], a[16], a[17], a[18]
        stored, capacity, n, form, of_h = a[19], a[20], a[21], a[22], a[23] != 0
        eps, scale = np.float32(numbers[0]), np.float32(numbers[1])
        width, wide = heads * value_size, heads * (2 * size + value_size)
        x, spare = carray(_pointer(a[1]), (rows, dim), np.float32), carray(_pointer(a[2]), (rows, dim), np.float32)
        joined, seen = (
            carray(_pointer(a[3]), (rows, wide), np.float32),
            carray(_pointer(a[4]), (rows, width), np.float32),
        )
        seen_by_head = carray(_pointer(a[4]), (rows, heads, value_size), np.float32)
        middle = carray(_pointer(a[5]), (rows, inner), np.float32)
        table, keep = (
            carray(_pointer(a[6]), (rows, capacity), np.int32),
            carray(_pointer(a[7]), (rows, capacity), np.bool_),
        )
        no_bias, no_strides = carray(_pointer(a[1]), 1, np.float32), a[:3]
        h, q = np.empty((rows, dim), np.float32), np.empty((rows, heads, size), np.float32)
        for i in range(layers):
            t = carray(_pointer(a[8] + 112 * i), 14, np.int64)
            count = counters + 40 * i
            keys = carray(_pointer(t[12]), (stored, heads, capacity, size), kind)
            values = carray(_pointer(t[13]), (stored, heads, capacity, value_size), kind)
            gain, shift = carray(_pointer(t[8]), dim, np.float32), carray(_pointer(t[9]), dim, np.float32)
            _normed(x, gain, shift, t[8] != 0, eps, h)
            w, b = carray(_pointer(t[0]), (wide, dim), kind), carray(_pointer(t[1]), wide, np.float32)
            _product(_pointer(count), w, h, b, t[1] != 0, joined, 0, x, False)
            _meet(barrier)
            while True:
                low = _take(_pointer(count + 8), PAIRS)
                if low >= rows * heads:
                    break
                high = min(rows * heads, low + PAIRS)
                _remember(joined, keys, values, n - 1, q, scale, low, high)
                _look_back(
                    q,
                    keys,
                    values,
                    table,
                    a[6] != 0,
                    keep,
                    a[7] != 0,
                    no_bias,
                    False,
                    no_strides,
                    n,
                    seen_by_head,
                    low,
                    high,
                )
            _meet(barrier)
            w, b = carray(_pointer(t[2]), (dim, width), kind), carray(_pointer(t[3]), dim, np.float32)
            _product(_pointer(count + 16), w, seen, b, t[3] != 0, spare, 0, h if of_h else x, True)
            _meet(barrier)
            x, spare = spare, x
            gain, shift = carray(_pointer(t[10]), dim, np.float32), carray(_pointer(t[11]), dim, np.float32)
            _normed(x, gain, shift, t[10] != 0, eps, h)
            w, b = carray(_pointer(t[4]), (inner, dim), kind), carray(_pointer(t[5]), inner, np.float32)
            _product(_pointer(count + 24), w, h, b, t[5] != 0, middle, form, x, False)
            _meet(barrier)
            w, b = carray(_pointer(t[6]), (dim, inner), kind), carray(_pointer(t[7]), dim, np.float32)
            _product(_pointer(count + 32), w, middle, b, t[7] != 0, spare, 0, h if of_h else x, True)  # eq. (3)
            _meet(barrier)
            x, spare = spare, x

    return _compiled(run, kind)
