r"""CRC-32C of large arrays in plain numpy: whole runs of words are folded by a sparse multiple of the polynomial.

    R(m) = 1 + M(x) x^32 mod P(x),   P = 0x1edc6f41 (Castagnoli)                                  (1)
    x^(64 N) = x^(64 A) + x^(64 B) + 1 mod P,   N = 10912, A = 1933, B = 414                     (2)
    d_i <- d_i + d_{i-(N-A)} + d_{i-(N-B)} + d_{i-N}                                             (3)
    u x^(32 k) + v                                                                               (4)
    mask(c) = ((c >> 15 | c << 17) + 0xa282ead8) mod 2^32                                        (5)

M is the message as a polynomial over GF(2), its first bit (the lowest of its first byte) of the highest degree; 1 in
(1) stands for ones in the first 32 bits and in the result, + is exclusive or everywhere. d_i are its 64-bit words. By
(2) a word may be replaced by its copies N-A, N-B and N places later, all at the same bit: no table is looked up, and
N-A = 8979 words can be done at once, so numpy runs at the speed of the cache. What is left of a long message is N
words; they are halved by (4), pairs of 32-bit words at a time, the product by x^(32 k) looked up in four tables of 256.

A byte by byte loop in Python reaches 4 MB/s, this several hundred. Where google_crc32c is installed with its compiled
part (pip install "danlu[fast]"), that one is called.

Source: the checksum after Castagnoli et al., 1993, and RFC 3720; mask: the table format of LevelDB; folding by sparse
multiples after Russell, 2024, "Chorba", arXiv:2412.16398. The multiple (2) was found by our own search over all
N < 12289 for the largest N-A.
Shapes: bytes in, one integer below 2^32 out.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["crc32c", "masked_crc32c"]

Bytes = bytes | bytearray | memoryview | NDArray[np.uint8]
_POLYNOMIAL = 0x82F63B78  # P of eq. (1) without x^32, lowest bit = highest degree
_N, _A, _B = 10912, 1933, 414  # eq. (2), in words of 64 bits
_CHUNK = 8 * (_N - _A)  # words folded between two copies; a multiple of the words that can be done at once


def crc32c(data: Bytes, crc: int = 0) -> int:
    """CRC-32C of some bytes, eq. (1).

    Args:
        data: bytes or anything contiguous that shows its bytes.
        crc: checksum of what stood before, to go on with it.

    Returns:
        Integer in [0, 2^32).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    >>> crc32c(b"789", crc32c(b"123456")) == crc32c(b"123456789")
    True
    """
    flat = np.frombuffer(data, np.uint8)
    compiled = _compiled()
    if compiled is not None and flat.size > 64:
        return compiled(crc, flat)
    return _crc32c_numpy(flat, crc)


def masked_crc32c(data: Bytes, crc: int = 0) -> int:
    """`crc32c` in the form that table files store, eq. (5): a checksum of bytes that hold checksums is a poor one.

    Args:
        data: bytes or anything contiguous that shows its bytes.
        crc: checksum, not masked, of what stood before.

    Returns:
        Integer in [0, 2^32).

    >>> hex(masked_crc32c(b"123456789"))
    '0xc78ab0e5'
    """
    value = crc32c(data, crc)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF  # eq. (5)


@cache
def _compiled() -> Callable[[int, NDArray[np.uint8]], int] | None:
    """`extend` of google_crc32c if it is there; its fallback in Python is slower than ours."""
    try:
        import google_crc32c
    except ImportError:
        return None
    return google_crc32c.extend if google_crc32c.implementation == "c" else None


def _crc32c_numpy(flat: NDArray[np.uint8], crc: int = 0) -> int:
    """Eq. (1) without a compiled helper; `flat` is (n,) bytes."""
    state = crc ^ 0xFFFFFFFF  # the ones of eq. (1)
    whole = flat.size // 8 * 8
    if whole >= 256:
        words = _fold(flat[:whole], state) if whole > 8 * 2 * _N else _started(flat[:whole].copy(), state)
        halves = words.view("<u4").astype(np.uint32)
        level = 0
        while halves.size > 1:
            if halves.size % 2:
                halves = np.concatenate([np.zeros(1, np.uint32), halves])  # zeros in front change nothing
            halves = _times(level, halves[0::2]) ^ halves[1::2]  # eq. (4), k = 2^level
            level += 1
        state = int(_times(0, halves)[0])  # x^32 of eq. (1)
        flat = flat[whole:]
    table = _byte_table()
    for byte in flat.tolist():
        state = table[(state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF


def _started(flat: NDArray[np.uint8], state: int) -> NDArray[np.uint8]:
    """The message with `state` added to its first 32 bits, in place."""
    flat[:4] ^= np.frombuffer(state.to_bytes(4, "little"), np.uint8)
    return flat


def _fold(flat: NDArray[np.uint8], state: int) -> NDArray[np.uint8]:
    """The last N words of a message of more, all others added into them by eq. (3)."""
    total = flat.size // 8
    first, second, third = _N - _A, _N - _B, _N
    work = np.zeros(_N + _CHUNK, np.uint64)  # N words that are done, then the chunk at hand
    raw = work.view(np.uint8)
    for begin in range(0, total - _N, _CHUNK):
        count = min(_CHUNK, total - _N - begin)
        raw[8 * _N : 8 * (_N + count)] = flat[8 * begin : 8 * (begin + count)]
        if begin == 0:
            _started(raw[8 * _N :], state)
        for i in range(_N, _N + count, first):
            end = min(i + first, _N + count)
            block = work[i:end]
            block ^= work[i - first : end - first]  # eq. (3)
            block ^= work[i - second : end - second]
            block ^= work[i - third : end - third]
        work[:_N] = work[count : _N + count].copy()
    last = np.frombuffer(flat[8 * (total - _N) :].tobytes(), np.uint64).copy()
    done = work[:_N]
    last[:first] ^= done[_N - first :]  # eq. (3), from the words before these N only
    last[:second] ^= done[_N - second :]
    last ^= done
    return last.view(np.uint8)


@cache
def _tables(level: int) -> NDArray[np.uint32]:
    """(4, 256) products of every byte at every place of a word with x^(32 2^level)."""
    places = np.arange(256, dtype=np.uint32)[None] << np.arange(0, 32, 8, dtype=np.uint32)[:, None]  # (4, 256)
    if level:
        return _times(level - 1, _times(level - 1, places))
    product = places
    for _ in range(32):
        product = product >> np.uint32(1) ^ (product & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    return product


def _times(level: int, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Words times x^(32 2^level) mod P."""
    table = _tables(level)
    product = table[0][words & np.uint32(255)]
    for place in (1, 2, 3):
        product ^= table[place][words >> np.uint32(8 * place) & np.uint32(255)]
    return product


@cache
def _byte_table() -> list[int]:
    """The state after one byte, for a byte by byte loop over what is short."""
    table = []
    for state in range(256):
        for _ in range(8):
            state = state >> 1 ^ (state & 1) * _POLYNOMIAL
        table.append(state)
    return table
