r"""Utilities of daily use on sequences and texts: pad, truncate, segment, compare, read by line, map in parallel.

Truncation of several sequences to a common budget takes one item after another from the longest (the first of equals)
until the sum fits. That ends at a level that can be computed at once:

    sum_i min(n_i, level) <= maxlen < sum_i min(n_i, level + 1)                      (1)

and of the sequences longer than the level the last maxlen - sum_i min(n_i, level) keep one item more.

The longest common subsequence fills c[i, j], the length for the first i and j items,

    c[i, j] = c[i-1, j-1] + 1 if a_i = b_j else max(c[i-1, j], c[i, j-1])            (2)

a row at a time in one long integer whose bit j is 0 where c[i, j+1] - c[i, j] = 1 (M marks where b equals a_i):

    V_0 = 1...1,   V_i = (V_{i-1} + (V_{i-1} & M)) | (V_{i-1} & ~M)                  (3)

The longest common substring runs one sequence through the suffix automaton of the other, linear in both lengths.

Source: functions that bert4keras users know (its names stand in the docstrings); (3) Hyyrö, 2004, "Bit-parallel
    LCS-length computation revisited"; suffix automaton: Blumer et al., 1985, "The smallest automaton recognizing the
    subwords of a text".
Shapes: stated per function; only `pad_sequences` makes tensors.
"""

import math
import mmap
import os
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import reduce
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from danlu.data.errors import InputError

__all__ = [
    "IndexedLines",
    "longest_common_subsequence",
    "longest_common_substring",
    "pad_sequences",
    "parallel_map",
    "segment_text",
    "to_half_width",
    "truncate",
    "truncate_longest_first",
    "truncated_lengths",
]

T = TypeVar("T")
R = TypeVar("R")
_HALF_WIDTH = {0x3000: " "} | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_SCAN = 1 << 24  # bytes looked at in one go when lines are counted


def pad_sequences(
    sequences: Sequence[Any],
    length: int | Sequence[int] | None = None,
    value: float = 0,
    axes: int = 1,
    side: str = "right",
) -> Tensor:
    """One tensor of examples of different lengths; bert4keras calls it `sequence_padding`.

    Args:
        sequences: B examples: tensors, arrays or nested lists; lists may be ragged along the padded axes.
        length: size of the padded axis (one number for each where axes > 1), in items; None takes the longest example.
            Longer examples lose their end, whatever `side` says.
        value: what to fill with.
        axes: how many leading axes of an example are padded; further axes must agree.
        side: "right" fills after the items, "left" before them.

    Returns:
        (B, length..., further axes...) in the dtype and on the device of the examples (numbers in lists: as
        `torch.as_tensor` reads them; only empty examples: int64).

    Raises:
        ValueError: nothing to pad, an example has too few axes or other further axes, or an option is out of range.

    >>> pad_sequences([[1, 2, 3], [4]])
    tensor([[1, 2, 3],
            [4, 0, 0]])
    >>> pad_sequences([[[1], [2]], [[3, 4]]], axes=2, side="left")[1]
    tensor([[0, 0],
            [3, 4]])
    """
    if side not in ("right", "left"):
        raise ValueError(f"side must be 'right' or 'left', got {side!r}")
    if axes < 1:
        raise ValueError(f"axes must be at least 1, got {axes}; it counts the axes to pad, not their positions")
    if not len(sequences):
        raise ValueError("pad_sequences needs at least one example, got none")
    examples = [_converted(example, axes, number) for number, example in enumerate(sequences)]
    leaves = [leaf for example in examples for leaf in _leaves(example, axes)]
    full = [leaf for _, leaf in leaves if leaf.numel()]
    dtype = reduce(torch.promote_types, (leaf.dtype for leaf in full)) if full else torch.int64
    rests = {leaf.shape[depth:] for depth, leaf in leaves if leaf.numel()}
    if len(rests) > 1:
        few = " and ".join(str(tuple(rest)) for rest in sorted(rests)[:2])
        raise ValueError(f"axes after the first {axes} must agree, got {few}; a larger axes= pads them as well")
    if not (dtype.is_floating_point or dtype.is_complex) and not float(value).is_integer():
        raise ValueError(f"value {value} does not fit examples of {dtype}; give a whole number or float examples")
    sizes = _sizes_given(length, axes) or [max(s) for s in zip(*(_sizes(e, axes) for e in examples), strict=True)]
    device = leaves[0][1].device if leaves else None
    shape = (len(examples), *sizes, *next(iter(rests), ()))
    out = torch.full(shape, value, dtype=dtype, device=device)
    for row, example in zip(out, examples, strict=True):
        _fill(row, example, axes, side)
    return out


def truncated_lengths(lengths: Sequence[int], maxlen: int) -> list[int]:
    """Lengths left after taking one item after another from the longest until the sum is maxlen, eq. (1).

    Args:
        lengths: items of each sequence.
        maxlen: items allowed in all.

    Returns:
        New lengths in the order given; unchanged where the sum fits. Time k log k for k sequences.

    Raises:
        ValueError: maxlen is negative.

    >>> truncated_lengths([8, 3, 8], 12)  # 4 are left for each of the long ones, 1 over goes to the last
    [4, 3, 5]
    """
    if maxlen < 0:
        raise ValueError(f"maxlen must be at least 0, got {maxlen}")
    left = maxlen
    for rank, n in enumerate(sorted(lengths)):
        level, extra = divmod(left, len(lengths) - rank)  # eq. (1), if all the shorter ones stay whole
        if n > level:
            longer = [i for i, size in enumerate(lengths) if size > level]
            out = [min(size, level) for size in lengths]
            for i in longer[len(longer) - extra :]:
                out[i] += 1
            return out
        left -= n
    return list(lengths)


def truncate(sequence: Sequence[T], length: int, index: int = -1) -> list[T]:
    """A sequence without what `pop(index)`, repeated until the length fits, would remove.

    Args:
        sequence: any.
        length: items allowed.
        index: where items are taken out: -1 the end, 0 the beginning, -2 before the last item, 1 after the first.

    Returns:
        A new list of min(len(sequence), length) items.

    Raises:
        ValueError: at `index` the sequence runs out of items before the length fits.

    >>> truncate(["[CLS]", "a", "b", "c", "[SEP]"], 3, index=-2)
    ['[CLS]', 'a', '[SEP]']
    """
    drop = len(sequence) - length
    if drop <= 0:
        return list(sequence)
    begin = index if index >= 0 else len(sequence) + index + 1 - drop
    if length < 0 or not 0 <= begin <= length:
        raise ValueError(
            f"{len(sequence)} items cannot be cut to {length} at index {index}: "
            f"{abs(index) if index >= 0 else -index - 1} of them lie outside; raise the length or use -1 or 0"
        )
    return [*sequence[:begin], *sequence[begin + drop :]]


def truncate_longest_first(
    sequences: Sequence[Sequence[T]], maxlen: int, index: int | Sequence[int] = -1
) -> list[list[T]]:
    """Sequences cut, the longest first, until together they hold maxlen items; bert4keras: `truncate_sequences`.

    Unlike there, the caller's lists stay as they are, and time is linear in the items instead of quadratic.

    Args:
        sequences: any number; empty ones stay.
        maxlen: items allowed in all.
        index: where items are taken out (`truncate`), one for all or one for each sequence.

    Returns:
        New lists in the order given.

    Raises:
        ValueError: maxlen is negative, a sequence cannot be cut at its index, or the indices are not as many.

    >>> truncate_longest_first([[1, 2, 3, 4, 5], [6, 7]], 5)
    [[1, 2, 3], [6, 7]]
    """
    places = [index] * len(sequences) if isinstance(index, int) else list(index)
    if len(places) != len(sequences):
        raise ValueError(f"index must be one number or one for each sequence; got {len(places)} for {len(sequences)}")
    lengths = truncated_lengths([len(s) for s in sequences], maxlen)
    return [truncate(s, n, at) for s, n, at in zip(sequences, lengths, places, strict=True)]


def segment_text(text: str, maxlen: int, separators: str = "\n", strip: str | None = None) -> list[str]:
    r"""A text cut at separators into segments of at most maxlen characters; bert4keras: `text_segmentate`.

    Cuts at the first separator as seldom as the length allows; segments still too long are cut at the second, and so
    on. Where no separator is left a segment stays as long as it is.

    Args:
        text: any length.
        maxlen: characters wanted in a segment, its closing separator included.
        separators: one character each, the most important first; a separator stays at the end of its segment.
        strip: characters taken off both ends of each segment besides blanks; None only blanks.

    Returns:
        At least one segment; a segment can be "" where nothing but stripped characters stood.

    Raises:
        ValueError: maxlen is below 1.

    >>> segment_text("今天不错。去玩吧!好,去", 5, "。!,")
    ['今天不错。', '去玩吧!', '好,去']
    """
    if maxlen < 1:
        raise ValueError(f"maxlen must be at least 1 character, got {maxlen}")
    text = text.strip().strip(strip)
    if not separators or len(text) <= maxlen:
        return [text]
    segments: list[str] = []
    begin = end = 0  # the segment in work is text[begin:end]
    for part in text.split(separators[0]):
        if end > begin and part and end - begin + len(part) > maxlen - 1:
            segments += segment_text(text[begin:end], maxlen, separators[1:], strip)
            begin = end
        end = min(end + len(part) + 1, len(text))
    if end > begin:
        segments += segment_text(text[begin:end], maxlen, separators[1:], strip)
    return segments


def to_half_width(text: str) -> str:
    """The text with full-width letters, digits, marks and blanks in their ASCII form; bert4keras: `strQ2B`.

    Args:
        text: any; other characters, such as the Chinese full stop, stay.

    Returns:
        A text of the same length.

    >>> to_half_width("ＡＢＣ１２３，。！")
    'ABC123,。!'
    """
    return text.translate(_HALF_WIDTH)


def longest_common_substring(
    source: Sequence[Hashable], target: Sequence[Hashable]
) -> tuple[int, tuple[int, int, int, int]]:
    """Length and place of the longest run of items that stands in both; the name is bert4keras' too.

    Args:
        source: a text, or a sequence of hashable items.
        target: another.

    Returns:
        length and (begin, end in source, begin, end in target), end exclusive; of several the one that ends first in
        the source, then first in the target. (0, (0, 0, 0, 0)) where nothing is shared.

    >>> longest_common_substring("苏剑林的科学空间", "在科学空间里")
    (4, (4, 8, 1, 5))
    """
    swapped = len(source) > len(target)
    short, long = (target, source) if swapped else (source, target)
    step, link, size, first = _suffix_automaton(short)
    state = run = best = 0
    ends = (0, 0)  # in source, in target
    for end, item in enumerate(long, 1):
        while state and item not in step[state]:
            state = link[state]
            run = size[state]
        if item not in step[state]:
            continue
        state, run = step[state][item], run + 1
        places = (end, first[state]) if swapped else (first[state], end)
        if run > best or (run == best and places < ends):
            best, ends = run, places
    return best, (ends[0] - best, ends[0], ends[1] - best, ends[1])


def longest_common_subsequence(
    source: Sequence[Hashable], target: Sequence[Hashable]
) -> tuple[int, list[tuple[int, int]]]:
    """Length and matches of the longest sequence of items found in both in order, eq. (2) by (3); bert4keras' name too.

    Args:
        source: a text, or a sequence of hashable items.
        target: another.

    Returns:
        length and its pairs (position in source, position in target); of several the one that a walk from the ends
        finds which takes every match and else leaves out the last item of the source where that costs nothing. Time
        n m / 64 word operations, memory 2 sqrt(n) m / 8 bytes.

    >>> longest_common_subsequence("科学的空间", "科学空间站")
    (4, [(0, 0), (1, 1), (3, 2), (4, 3)])
    """
    n, m = len(source), len(target)
    ones = (1 << m) - 1
    marks = _marks(target)
    stride = math.isqrt(n) + 1

    def rows_from(row: int, begin: int, end: int) -> Iterator[int]:
        for item in source[begin:end]:
            match = row & marks.get(item, 0)
            row = ((row + match) | (row - match)) & ones  # eq. (3)
            yield row

    kept = [ones]  # V_0, V_stride, V_2stride, ...
    for begin in range(0, n, stride):
        *_, last = rows_from(kept[-1], begin, min(begin + stride, n))
        kept.append(last)
    block, rows = -1, []

    def row_at(i: int) -> int:
        nonlocal block, rows
        if i // stride != block:
            block = i // stride
            rows = [kept[block], *rows_from(kept[block], block * stride, (block + 1) * stride - 1)]
        return rows[i % stride]

    def count(i: int, j: int) -> int:  # c[i, j]
        return j - (row_at(i) & ((1 << j) - 1)).bit_count()

    i, j, value = n, m, count(n, m)
    length, matches = value, []
    while value:
        if source[i - 1] == target[j - 1]:
            i, j, value = i - 1, j - 1, value - 1
            matches.append((i, j))
        elif row_at(i) >> (j - 1) & 1 and count(i - 1, j) < value:  # c[i, j-1] = value > c[i-1, j]
            j -= 1
        else:
            i -= 1
    return length, matches[::-1]


class IndexedLines(Sequence[str]):
    r"""The lines of a UTF-8 file by number without reading the file; bert4keras: `open(name, indexable=True)`.

    The file is mapped into memory, eight bytes a line are kept. Lines end at "\n" or "\r\n" and nowhere else; a closing
    "\n" starts no further line. The file must stay as it is while in use. Copies for other processes (pickle, a
    DataLoader's workers) open the file anew.

    Args:
        path: a plain file, not compressed.

    Raises:
        InputError: the file is missing, unreadable, compressed or in UTF-16; on access, a line is not UTF-8.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._map: mmap.mmap | bytes = b""
        try:
            with open(self.path, "rb") as file:
                self._state = (os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_mtime_ns)
                if self._state[0]:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}; name a plain text file") from None
        head = self._map[:3]
        if head[:2] in (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff"):
            kind, way = ("gzip", "gzip -dk") if head[:1] == b"\x1f" else ("UTF-16", "iconv -f UTF-16 -t UTF-8")
            raise InputError(f"{path}: {kind} has no lines to point at; convert the file first ({way})")
        ends = [
            np.flatnonzero(np.frombuffer(self._map[at : at + _SCAN], np.uint8) == 10) + at
            for at in range(0, len(self._map), _SCAN)
        ]
        begins = [np.array([3 if head == b"\xef\xbb\xbf" else 0]), *(e + 1 for e in ends)]
        self._begin = np.concatenate(begins)  # (lines + 1,) where a line begins, then the end of the file
        if self._begin[-1] < len(self._map):
            self._begin = np.append(self._begin, len(self._map) + 1)  # as if the last line were closed

    def __len__(self) -> int:
        return len(self._begin) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # negative ones, IndexError
        line = self._map[int(self._begin[number]) : int(self._begin[number + 1]) - 1]
        try:
            return line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}, line {number + 1}: invalid UTF-8 at byte {error.start + 1} of the line; convert the file"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "state": self._state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]
        if self._state != state["state"]:
            raise InputError(f"{self.path}: changed since it was opened; open it again")


def parallel_map(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int | None = None,
    threads: bool = False,
    chunk: int = 1,
    context: str | None = None,
) -> Iterator[R]:
    """function(item) for each item, in order, from several workers; bert4keras: `parallel_apply_generator`.

    A failure of the function is raised here with a note that names the item, a worker that dies is an error too (the
    original waited for ever), and items are read only a few chunks ahead of the results. Leaving the loop early stops
    the workers.

    Args:
        function: of one item; for processes it must be importable by name, its items and results picklable.
        items: any iterable, also an endless one.
        workers: how many; None one for each processor this process may use, 0 none: all happens here, for debugging.
        threads: True uses threads, which share memory but seldom run Python at the same time.
        chunk: items handed over at a time; larger ones spare overhead where the function takes microseconds.
        context: how processes start, "fork", "spawn" or "forkserver"; None as Python's default.

    Returns:
        An iterator over the results.

    Raises:
        ValueError: workers is negative or chunk below 1.
        TypeError: processes are asked for and the function cannot be pickled.

    >>> list(parallel_map(len, ["a", "bb", "ccc"], workers=2, threads=True))
    [1, 2, 3]
    """
    if chunk < 1 or (workers is not None and workers < 0):
        raise ValueError(f"workers must be at least 0 and chunk at least 1, got {workers} and {chunk}")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers and not threads:
        try:
            pickle.dumps(function)
        except Exception as error:
            raise TypeError(
                f"processes need a function that is importable by name, not a lambda or a local one ({error}); "
                "define it at the top of a module, or pass threads=True"
            ) from None
    return _mapped(function, iter(items), workers, threads, chunk, context)


def _mapped(
    function: Callable[[T], R], items: Iterator[T], workers: int, threads: bool, chunk: int, context: str | None
) -> Iterator[R]:
    batches = enumerate(iter(lambda: list(islice(items, chunk)), []))
    if not workers:
        for number, batch in batches:
            yield from _apply(function, batch, number * chunk, False)
        return
    pool: Executor = (
        ThreadPoolExecutor(workers) if threads else ProcessPoolExecutor(workers, mp_context=get_context(context))
    )
    pending: deque[Future[list[R]]] = deque()
    try:
        for number, batch in batches:
            pending.append(pool.submit(_apply, function, batch, number * chunk, not threads))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died without a word (killed, out of memory, or a crash in native code); "
            "use fewer workers, or workers=0 to see it happen here"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _apply(function: Callable[[T], R], batch: list[T], first: int, travels: bool) -> list[R]:
    """Results of a chunk; an exception leaves with the number of its item, in a form that can be pickled."""
    out = []
    for number, item in enumerate(batch, first):
        try:
            out.append(function(item))
        except Exception as error:
            error.add_note(f"raised by parallel_map for item {number}")
            if travels and not _picklable(error):
                text = "".join(traceback.format_exception(error))
                raise RuntimeError(f"{type(error).__name__}: {error} (item {number})\n{text}") from None
            raise
    return out


def _picklable(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


def _converted(item: Any, depth: int, number: int) -> Any:
    """Nested lists with tensors as leaves: at the last padded axis, or earlier where the example is an array."""
    if isinstance(item, Tensor | np.ndarray) or depth == 1:
        leaf = torch.as_tensor(item)
        if leaf.ndim < depth:
            raise ValueError(f"example {number} has too few axes: {leaf.ndim} where {depth} are padded")
        return leaf
    return [_converted(part, depth - 1, number) for part in item]


def _leaves(item: Any, depth: int) -> Iterator[tuple[int, Tensor]]:
    """(padded axes of the tensor, tensor) for every leaf."""
    if isinstance(item, Tensor):
        yield depth, item
    else:
        for part in item:
            yield from _leaves(part, depth - 1)


def _sizes(item: Any, depth: int) -> list[int]:
    """Size of each padded axis, the largest where lists are ragged."""
    if isinstance(item, Tensor):
        return list(item.shape[:depth])
    inner = [_sizes(part, depth - 1) for part in item] or [[0] * (depth - 1)]
    return [len(item), *(max(sizes) for sizes in zip(*inner, strict=True))]


def _sizes_given(length: int | Sequence[int] | None, axes: int) -> list[int] | None:
    if length is None:
        return None
    sizes = [length] if isinstance(length, int) else list(length)
    if len(sizes) != axes or min(sizes) < 0:
        raise ValueError(f"length must hold {axes} sizes of at least 0, one for each padded axis, got {length}")
    return sizes


def _fill(row: Tensor, item: Any, depth: int, side: str) -> None:
    """Write an example into its row, depth padded axes first."""
    if isinstance(item, Tensor):
        if not item.numel():
            return
        item = item[tuple(slice(size) for size in row.shape[:depth])]
        sizes = zip(item.shape[:depth], row.shape, strict=False)
        row[tuple(slice(n) if side == "right" else slice(size - n, size) for n, size in sizes)] = item
    else:
        count = min(len(item), len(row))
        begin = 0 if side == "right" else len(row) - count
        for k in range(count):
            _fill(row[begin + k], item[k], depth - 1, side)


def _marks(sequence: Sequence[Hashable]) -> dict[Hashable, int]:
    """M of eq. (3) for each item: an integer whose bit j is 1 where the item stands at j."""
    places: dict[Hashable, bytearray] = {}
    for j, item in enumerate(sequence):
        if item not in places:
            places[item] = bytearray(len(sequence) // 8 + 1)
        places[item][j // 8] |= 1 << j % 8
    return {item: int.from_bytes(bits, "little") for item, bits in places.items()}


def _suffix_automaton(
    sequence: Sequence[Hashable],
) -> tuple[list[dict[Hashable, int]], list[int], list[int], list[int]]:
    """Steps, suffix links, longest lengths and first ends of the states; state 0 is the empty run."""
    step: list[dict[Hashable, int]] = [{}]
    link, size, first = [-1], [0], [0]
    last = 0
    for end, item in enumerate(sequence, 1):
        new = len(size)
        step.append({})
        link.append(0)
        size.append(end)
        first.append(end)
        state, last = last, new
        while state >= 0 and item not in step[state]:
            step[state][item] = new
            state = link[state]
        if state < 0:
            continue
        old = step[state][item]
        if size[old] == size[state] + 1:
            link[new] = old
            continue
        copy = len(size)  # the shorter runs of `old` end here as well, the longer ones do not: part them
        step.append(dict(step[old]))
        link.append(link[old])
        size.append(size[state] + 1)
        first.append(first[old])
        link[old] = link[new] = copy
        while state >= 0 and step[state].get(item) == old:
            step[state][item] = copy
            state = link[state]
    return step, link, size, first
