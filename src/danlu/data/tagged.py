r"""Examples as the readers return them, and the text that a list of tokens stands for.

    text = t_1 + gap(t_1, t_2) + t_2 + ...,   gap = " " between two Latin-like edges, "" beside a Chinese one       (1)

Characters of the blocks that write without blanks (Han, kana, CJK punctuation, full-width forms) count as Chinese.

Source: own definitions; the blocks are those of the Unicode Standard, chapter 18.
Shapes: no tensors; positions count characters (Unicode code points).
"""

from dataclasses import dataclass

__all__ = ["Labelled", "Tagged", "join_tokens"]


@dataclass(frozen=True, slots=True)
class Tagged:
    """One sentence with a tag per token; `text` is the original where known, otherwise `join_tokens(tokens)`."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    text: str
    line: int  # line of the file it begins on, counted from 1
    nested: tuple[tuple[int, int, str], ...] = ()  # all spans where some overlap; the tags then hold the longer ones

    @property
    def overlap(self) -> tuple[tuple[int, int, str], tuple[int, int, str]]:
        """The first two spans of `nested` that share a token."""
        ordered = sorted(self.nested)
        return next((a, b) for i, a in enumerate(ordered) for b in ordered[i + 1 :] if b[0] < a[1])


@dataclass(frozen=True, slots=True)
class Labelled:
    """One text with its class."""

    text: str
    label: str
    line: int  # line of the file it begins on, counted from 1


def join_tokens(tokens: tuple[str, ...] | list[str]) -> str:
    """The text of tokens whose original spacing is unknown, eq. (1).

    Args:
        tokens: words or characters.

    Returns:
        One string.

    >>> join_tokens(["我", "爱", "New", "York"])
    '我爱New York'
    """
    parts: list[str] = []
    before = ""
    for token in tokens:
        if before and token and not _writes_without_blanks(before[-1]) and not _writes_without_blanks(token[0]):
            parts.append(" ")  # eq. (1)
        parts.append(token)
        before = token
    return "".join(parts)


def _writes_without_blanks(character: str) -> bool:
    code = ord(character)
    return (
        0x2E80 <= code <= 0x9FFF  # radicals, CJK punctuation, kana, Han
        or 0xF900 <= code <= 0xFAFF  # compatibility Han
        or 0xFE30 <= code <= 0xFE4F  # compatibility punctuation
        or 0xFF00 <= code <= 0xFFEF  # full-width and half-width forms
        or 0x20000 <= code <= 0x323AF  # Han beyond the first plane
        or code in (0x2014, 0x2018, 0x2019, 0x201C, 0x201D, 0x2026, 0x00B7)  # dash, quotes, ellipsis, middle dot
    )
