"""Sequences: padding against loops, cuts against pop, common parts against all pairs, lines of files, workers."""

import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data import (
    IndexedLines,
    InputError,
    longest_common_subsequence,
    longest_common_substring,
    pad_sequences,
    parallel_map,
    segment_text,
    to_half_width,
    truncate,
    truncate_longest_first,
    truncated_lengths,
)

LETTERS = st.text("ab中", max_size=9)


# padding


def padded_by_hand(rows, width, value, side):
    out = []
    for row in rows:
        row = list(row)[:width]
        fill = [value] * (width - len(row))
        out.append(row + fill if side == "right" else fill + row)
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(0, 6)),
    st.sampled_from([0, -1]),
    st.sampled_from(["right", "left"]),
)
def test_one_axis_equals_loops(rows, length, value, side):
    width = max(map(len, rows)) if length is None else length
    got = pad_sequences(rows, length, value, side=side)
    assert got.dtype == torch.int64
    assert got.tolist() == padded_by_hand(rows, width, value, side)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.lists(st.integers(1, 9), max_size=3), max_size=4), min_size=1, max_size=3),
    st.one_of(st.none(), st.tuples(st.integers(0, 4), st.integers(0, 4))),
    st.sampled_from(["right", "left"]),
)
def test_two_ragged_axes_equal_loops(examples, length, side):
    inner = [row for example in examples for row in example]
    sizes = length or (max(map(len, examples)), max(map(len, inner), default=0))
    expected = []
    for example in examples:
        (rows,) = padded_by_hand([example], sizes[0], [], side)
        expected.append(padded_by_hand(rows, sizes[1], 0, side))
    got = pad_sequences(examples, length, axes=2, side=side)
    assert got.shape == (len(examples), *sizes)
    assert got.tolist() == expected


def test_arrays_and_tensors_keep_dtype_trailing_axes_and_values():
    x = [torch.ones(2, 3, 2, dtype=torch.bfloat16), torch.full((1, 4, 2), 2, dtype=torch.bfloat16)]
    kept = [t.clone() for t in x]
    out = pad_sequences(x, axes=2, value=-1)
    assert out.dtype == torch.bfloat16
    assert out.shape == (2, 2, 4, 2)
    assert torch.equal(out[0, :, :3], x[0])
    assert torch.equal(out[1, :1], x[1])
    assert (out[0, :, 3] == -1).all()
    assert (out[1, 1] == -1).all()
    assert all(torch.equal(a, b) for a, b in zip(x, kept, strict=True))
    left = pad_sequences([np.arange(3, dtype=np.int32), np.arange(2, dtype=np.int32)], side="left")
    assert left.dtype == torch.int32
    assert left.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert pad_sequences([[1, 2], [0.5]]).dtype == torch.float32
    assert pad_sequences([[], [1]]).tolist() == [[0], [1]]
    assert pad_sequences([[], []]).dtype == torch.int64
    assert pad_sequences([[True], []], value=0).dtype == torch.bool


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sequences=[[1]], side="post"), "side must be 'right' or 'left', got 'post'"),
        (dict(sequences=[[1]], axes=0), "axes must be at least 1, got 0"),
        (dict(sequences=[]), "at least one example, got none"),
        (dict(sequences=[[1]], value=0.5), r"value 0\.5 does not fit examples of torch\.int64"),
        (dict(sequences=[[1]], value=float("-inf")), "does not fit"),
        (dict(sequences=[[1]], length=[1, 2]), r"length must hold 1 sizes of at least 0.*got \[1, 2\]"),
        (dict(sequences=[[1]], length=-1), "length must hold 1 sizes"),
        (dict(sequences=[torch.ones(2)], axes=2), "example 0 has too few axes: 1 where 2 are padded"),
        (
            dict(sequences=[torch.ones(1, 2), torch.ones(1, 3)]),
            r"axes after the first 1 must agree, got \(2,\) and \(3,\); a larger axes= pads them",
        ),
    ],
)
def test_padding_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        pad_sequences(**arguments)


# truncation


def popped(sequences, maxlen, indices):
    """Oracle: take one item after another from the longest; None where there is nothing to take."""
    sequences = [list(s) for s in sequences]
    while sum(map(len, sequences)) > maxlen:
        longest = max(range(len(sequences)), key=lambda i: (len(sequences[i]), -i))
        try:
            sequences[longest].pop(indices[longest])
        except IndexError:
            return None
    return sequences


def test_cuts_equal_popping_for_all_small_cases():
    for lengths in product(range(5), repeat=3):
        sequences = [list(range(n)) for n in lengths]
        for maxlen, index in product(range(sum(lengths) + 2), (-3, -2, -1, 0, 1, 2)):
            expected = popped(sequences, maxlen, [index] * 3)
            if expected is None:
                with pytest.raises(ValueError, match="cannot be cut to"):
                    truncate_longest_first(sequences, maxlen, index)
            else:
                assert truncate_longest_first(sequences, maxlen, index) == expected
        assert [len(s) for s in sequences] == list(lengths)  # the caller's lists are as they were


def test_indices_of_their_own_and_empty_sequences():
    assert truncate_longest_first([[], [1, 2, 3], "abcd"], 4, [-1, 0, -2]) == [[], [2, 3], ["a", "d"]]
    assert truncate_longest_first([], 3) == []
    assert truncated_lengths([10**9, 5, 10**9], 10**9) == [499999997, 5, 499999998]  # no loop over items


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: truncated_lengths([1], -1), "maxlen must be at least 0, got -1"),
        (lambda: truncate([1, 2, 3], 1, 2), "3 items cannot be cut to 1 at index 2: 2 of them lie outside"),
        (lambda: truncate([1, 2, 3], 1, -3), "3 items cannot be cut to 1 at index -3: 2 of them lie outside"),
        (lambda: truncate([1], -1), "cannot be cut to -1"),
        (lambda: truncate_longest_first([[1], [2]], 1, [0]), "one for each sequence; got 1 for 2"),
    ],
)
def test_truncation_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# segments, widths


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=6), st.sampled_from("\n。，")), max_size=9),
    st.integers(1, 12),
)
def test_segments_keep_the_text_and_the_length_where_it_can_be_kept(parts, maxlen):
    text = "".join(word + separator for word, separator in parts)
    segments = segment_text(text, maxlen, "\n。，")
    assert "".join("".join(segments).split()) == "".join(text.split())
    for segment in segments:
        assert len(segment) <= maxlen or not {"\n", "。", "，"} & set(segment[:-1])


def test_segments_cut_at_the_more_important_separator_and_strip():
    text = "一，二。三，四。"
    assert segment_text(text, 8, "。，") == [text]
    assert segment_text(text, 4, "。，") == ["一，二。", "三，四。"]
    assert segment_text(text, 4, "，。") == ["一，", "二。三，", "四。"]
    assert segment_text(text, 4, "。，", strip="。") == ["一，二", "三，四"]
    assert segment_text(" 无处可断 ", 2, "。") == ["无处可断"]
    assert segment_text("", 2) == [""]
    with pytest.raises(ValueError, match="maxlen must be at least 1 character, got 0"):
        segment_text("a", 0)


def test_half_width_equals_unicode_compatibility_forms():
    import unicodedata

    wide = "".join(map(chr, [*range(0xFF01, 0xFF5F), 0x3000]))
    assert to_half_width(wide) == unicodedata.normalize("NFKC", wide)
    others = "".join(chr(c) for c in range(0x20, 0xFF00) if c != 0x3000)
    assert to_half_width(others) == others


# common parts


@settings(max_examples=200, deadline=None)
@given(LETTERS, LETTERS)
def test_longest_common_substring_is_the_first_of_all_longest(a, b):
    runs = [
        (-n, i + n, j + n)  # longest, then the first end in a, then in b
        for i in range(len(a))
        for j in range(len(b))
        for n in range(1, min(len(a) - i, len(b) - j) + 1)
        if a[i : i + n] == b[j : j + n]
    ]
    n, i, j = min(runs, default=(0, 0, 0))
    assert longest_common_substring(a, b) == (-n, (i + n, i, j + n, j))


@settings(max_examples=100, deadline=None)
@given(st.text("ab中", max_size=6), st.text("ab中", max_size=6))
def test_longest_common_subsequence_equals_enumeration(a, b):
    length, pairs = longest_common_subsequence(a, b)
    best = max(
        n
        for n in range(min(len(a), len(b)) + 1)
        if {tuple(x) for x in combinations(a, n)} & {tuple(x) for x in combinations(b, n)}
    )
    assert length == len(pairs) == best
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))


def walk(a, b):
    """Oracle of the choice among equals: eq. (2) in a table, then the walk from the ends."""
    c = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in product(range(1, len(a) + 1), range(1, len(b) + 1)):
        c[i][j] = c[i - 1][j - 1] + 1 if a[i - 1] == b[j - 1] else max(c[i - 1][j], c[i][j - 1])
    i, j, pairs = len(a), len(b), []
    while c[i][j]:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif c[i][j - 1] > c[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return c[-1][-1], pairs[::-1]


@settings(max_examples=150, deadline=None)
@given(st.text("abc", max_size=30), st.text("abc", max_size=30))
def test_longest_common_subsequence_chooses_as_the_table_does(a, b):
    assert longest_common_subsequence(a, b) == walk(a, b)


def test_common_parts_of_other_items_and_of_long_texts():
    assert longest_common_substring([1, "x", (2,)], ["x", (2,), 1]) == (2, (1, 3, 0, 2))
    assert longest_common_subsequence([1, "x", (2,)], [1, (2,)]) == (2, [(0, 0), (2, 1)])
    generator = np.random.default_rng(0)
    a, b = ("".join(generator.choice(list("abcdefgh"), 4000)) for _ in range(2))
    shared = "".join(generator.choice(list("xyz"), 60))
    a, b = a[:1000] + shared + a[1000:], b[:3000] + shared + b[3000:]
    began = time.perf_counter()
    assert longest_common_substring(a, b) == (60, (1000, 1060, 3000, 3060))
    length, pairs = longest_common_subsequence(a, b)
    assert length == len(pairs) > 1500
    assert all(a[i] == b[j] for i, j in pairs)
    assert time.perf_counter() - began < 10  # 16 million cells take longer than that in dictionaries


# lines of a file


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=6), max_size=8))
def test_lines_are_those_written(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    indexed = IndexedLines(path)
    expected = [line.removesuffix("\r") for line in lines]
    if lines and lines[0].startswith("\ufeff"):
        expected[0] = expected[0][1:]  # a byte-order mark
    assert list(indexed) == expected
    assert len(indexed) == len(lines)


def test_lines_by_number_slice_and_in_other_processes(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff一\r\n\n二\u2028三\x85\rx\nlast".encode())
    monkeypatch.setattr("danlu.data.sequences._SCAN", 4)  # line ends on both sides of a scan
    lines = IndexedLines(path)
    expected = ["一", "", "二\u2028三\x85\rx", "last"]
    assert (lines[0], lines[-1], lines[1:3], lines[::-1]) == ("一", "last", expected[1:3], expected[::-1])
    assert list(pickle.loads(pickle.dumps(lines))) == expected
    with pytest.raises(IndexError):
        lines[4]
    saved = pickle.dumps(lines)
    path.write_bytes(b"other\n")
    with pytest.raises(InputError, match=r"a\.txt: changed since it was opened"):
        pickle.loads(saved)
    (tmp_path / "empty").write_bytes(b"")
    assert list(IndexedLines(tmp_path / "empty")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a\.txt: cannot be read: No such file.*name a plain text file"),
        (b"\x1f\x8b\x08", r"a\.txt: gzip has no lines to point at; convert the file first \(gzip -dk\)"),
        (b"\xff\xfea\0", "UTF-16 has no lines"),
        (b"a\n\xc4\xe3\n", r"a\.txt, line 2: invalid UTF-8 at byte 1 of the line"),
    ],
)
def test_line_messages(tmp_path, content, message):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(IndexedLines(path))


# workers


def square(x):
    return x * x


def fail_at_five(x):
    if x == 5:
        raise KeyError("five")
    return x


class Stubborn(Exception):
    """Cannot be rebuilt from what pickle keeps."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def fail_stubbornly(x):
    raise Stubborn(x, "more")


def die(x):
    os.kill(os.getpid(), signal.SIGKILL)


WAYS = [dict(workers=0), dict(workers=2, threads=True), dict(workers=2, context="fork")]


@pytest.mark.parametrize("way", WAYS, ids=["here", "threads", "processes"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_results_come_in_order_and_failures_come_out(way, chunk):
    assert list(parallel_map(square, range(11), chunk=chunk, **way)) == [x * x for x in range(11)]
    assert list(parallel_map(square, [], chunk=chunk, **way)) == []
    got = []
    with pytest.raises(KeyError, match="five") as caught:
        for value in parallel_map(fail_at_five, range(100), chunk=chunk, **way):
            got.append(value)
    assert got == list(range(5 - 5 % chunk))  # all chunks before the one that failed
    assert "raised by parallel_map for item 5" in caught.value.__notes__
    assert multiprocessing.active_children() == []


def test_items_are_read_only_a_little_ahead_and_workers_stop_with_the_loop():
    read = []

    def endless():
        number = 0
        while True:
            read.append(number)
            yield number
            number += 1

    before = threading.active_count()
    for value in parallel_map(square, endless(), workers=2, threads=True):
        if value == 9:
            break
    del value
    time.sleep(0.1)
    assert max(read) < 20
    assert threading.active_count() <= before


def test_a_worker_that_dies_and_an_exception_that_cannot_travel_are_errors_too():
    with pytest.raises(RuntimeError, match=r"a worker process died.*workers=0"):
        list(parallel_map(die, [1, 2], workers=1, context="fork"))
    with pytest.raises(RuntimeError, match=r"Stubborn: 7 and more \(item 0\)"):
        list(parallel_map(fail_stubbornly, [7], workers=1, context="fork"))
    with pytest.raises(Stubborn, match="7 and more"):
        list(parallel_map(fail_stubbornly, [7], workers=0))


def test_parallel_messages():
    with pytest.raises(TypeError, match=r"importable by name, not a lambda.*pass threads=True"):
        parallel_map(lambda x: x, [1], workers=1)
    with pytest.raises(ValueError, match="workers must be at least 0 and chunk at least 1, got -1 and 1"):
        parallel_map(square, [1], workers=-1)
    with pytest.raises(ValueError, match="got 1 and 0"):
        parallel_map(square, [1], workers=1, chunk=0)


@pytest.mark.data
def test_equals_bert4keras(shared):
    cases = json.loads((shared / "oracles/tokenizer/helpers.json").read_text(encoding="utf-8"))
    for case in cases["text_segmentate"]:
        assert segment_text(case["text"], case["maxlen"], case["seps"], case["strips"]) == case["out"]
    for case in cases["longest_common_substring"]:
        expected = (case["length"], tuple(case["span"]))
        assert longest_common_substring(case["a"], case["b"]) == expected
    for case in cases["longest_common_subsequence"]:
        length, pairs = longest_common_subsequence(case["a"], case["b"])
        assert (length, [list(p) for p in pairs]) == (case["length"], case["mapping"])
    for case in cases["truncate_sequences"]:
        assert truncate_longest_first(case["sequences"], case["maxlen"], case["index"]) == case["out"]
    for case in cases["sequence_padding"]:
        names = {"seq_dims": "axes", "mode": "side"}
        options = {names.get(k, k): {"post": "right", "pre": "left"}.get(v, v) if k == "mode" else v
                   for k, v in case["arguments"].items()}  # fmt: skip
        assert pad_sequences(case["inputs"], **options).tolist() == case["out"]
