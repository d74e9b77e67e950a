"""CRC-32C: published values, a byte by byte loop, the algebra of its fold, sizes around thresholds, both backends."""

import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.text import crc32c as module
from danlu.text.crc32c import crc32c, masked_crc32c

N, A, B = 10912, 1933, 414  # 64-bit words
FIRST = N - A  # words folded at once
SIZES = [0, 1, 7, 8, 63, 64, 65, 255, 256, 257, 263, 264, 300, 4099]
BIG = [8 * 2 * N - 8, 8 * 2 * N, 8 * 2 * N + 8, 8 * 2 * N + 13, 8 * (N + FIRST) + 8 * N, 8 * (N + 8 * FIRST) + 8]


@pytest.fixture(params=["numpy", "google_crc32c"])
def backend(request, monkeypatch):
    """Once with the compiled package, once as if it were not installed."""
    if request.param == "numpy":
        monkeypatch.setitem(sys.modules, "google_crc32c", None)
    else:
        pytest.importorskip("google_crc32c")
    module._compiled.cache_clear()
    yield request.param
    module._compiled.cache_clear()


def times_x(state: int) -> int:
    """State times x mod P, the lowest bit of the highest degree."""
    return state >> 1 ^ (0x82F63B78 if state & 1 else 0)


TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = times_x(byte)
    TABLE.append(byte)


def by_loop(data: bytes, crc: int = 0) -> int:
    """Oracle: one byte after the other."""
    state = crc ^ 0xFFFFFFFF
    for byte in data:
        state = TABLE[(state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # these three: RFC 3720, appendix B.4
        (bytes([255] * 32), 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_values(data, value, backend):
    assert crc32c(data) == value


def test_mask_of_published_values():
    assert masked_crc32c(b"") == 0xA282EAD8
    assert masked_crc32c(b"123456789") == 0xC78AB0E5
    assert masked_crc32c(b"789", crc32c(b"123456")) == 0xC78AB0E5


@pytest.mark.parametrize("size", SIZES + BIG)
def test_equals_the_loop(size, backend):
    rng = random.Random(size)
    data, start = rng.randbytes(size), rng.getrandbits(32)
    assert crc32c(data) == by_loop(data)
    assert crc32c(data, start) == by_loop(data, start)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1), st.integers(0, 3000))
def test_parts_continue_each_other(data, start, cut):
    flat = np.frombuffer(data, np.uint8)
    value = module._crc32c_numpy(flat, start)
    assert value == by_loop(data, start)
    assert module._crc32c_numpy(flat[cut:], module._crc32c_numpy(flat[:cut], start)) == value


def test_a_bit_anywhere_changes_it(backend):
    data = bytearray(8 * 2 * N + 100)
    whole = crc32c(data)
    for place in (0, 3, 4, 8 * A, 8 * (N - A), 8 * N + 5, len(data) - 101, len(data) - 1):
        data[place] ^= 16
        assert crc32c(data) not in (whole, 0)
        data[place] ^= 16
    assert crc32c(data) == whole


def test_the_multiple_is_one():
    """Eq. (2), by squaring: x^(64 N) + x^(64 A) + x^(64 B) + 1 = 0 mod P."""

    def product(a: int, b: int) -> int:
        total = 0
        for i in range(31, -1, -1):  # bit 31 is x^0
            if b >> i & 1:
                total ^= a
            a = times_x(a)
        return total

    def power(exponent: int) -> int:
        result, square = 1 << 31, 1 << 30
        while exponent:
            if exponent & 1:
                result = product(result, square)
            square, exponent = product(square, square), exponent >> 1
        return result

    assert power(64 * N) ^ power(64 * A) ^ power(64 * B) ^ power(0) == 0
    assert (module._N, module._A, module._B) == (N, A, B)


def test_views_and_other_buffers(backend):
    data = random.Random(0).randbytes(400_001)
    array = np.frombuffer(data, np.uint8)
    assert crc32c(array[3:]) == crc32c(memoryview(data)[3:]) == crc32c(bytearray(data[3:])) == by_loop(data[3:])
    assert array.tobytes() == data  # nothing was written to
