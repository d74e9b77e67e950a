r"""Tag schemes: spans from tags, tags from spans, and which tag may follow which.

A tag is a prefix and a type joined by the first "-" ("B-PER", "B-PER.NOM", "M-n"), a bare prefix ("B": the type is ""),
or "O" for outside. Five schemes name the parts of a span:

    scheme   begin  inside  end  single                                                     (1)
    BIO        B      I      -     -      (IOB2: every span begins with B)
    IOB1       B      I      -     -      (B only where a span follows another of its type)
    BIOES      B      I      E     S
    BMES       B      M      E     S      (words, where "O" does not occur; Chinese entities, where it does)
    BILOU      B      I      L     U

Reading is lenient, as in the field's scorer: with p the tag before and t the tag, a span begins at t when

    t is begin or single,  or  t is inside or end and (p is O, end, single, or of another type)   (2)

and the running span ends before t when t begins one or is O. So a stray "I-PER" opens a span, a BIO span ends where its
type changes, and an unfinished BIOES span ("B-PER O") still counts. Judging is strict: `allowed_transitions` and
`illegal_steps` accept only what the scheme writes; the four-letter schemes

    start -> B, S, O;   B, I -> I, E of the same type;   E, S, O -> B, S, O;   E, S, O -> stop   (3)

Source: Ramshaw and Marcus, 1995, arXiv:cmp-lg/9505040; Tjong Kim Sang and Veenstra, 1999, arXiv:cs/9907006 (IOB1 and
IOB2); the conventions of (2) are those of the CoNLL-2000 script conlleval and of seqeval's default mode.
Shapes: K labels.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "SCHEMES",
    "allowed_transitions",
    "convert_tags",
    "detect_scheme",
    "illegal_steps",
    "repair_tags",
    "scheme_labels",
    "spans",
    "split_tag",
    "tags_from_spans",
]

# eq. (1): the letters of begin, inside, end, single
_LETTERS = {"BIO": "BI", "IOB1": "BI", "BIOES": "BIES", "BMES": "BMES", "BILOU": "BILU"}
SCHEMES = tuple(_LETTERS)
_BEGIN, _INSIDE, _END, _SINGLE, _OUTSIDE = range(5)


def spans(tags: Sequence[str], scheme: str = "BIO") -> list[tuple[int, int, str]]:
    """Spans of a tag sequence as (start, end exclusive, type), read leniently by eq. (2).

    Args:
        tags: tags of one sentence.
        scheme: one of SCHEMES.

    Returns:
        Spans in order; for BMES without types the spans are the words and their type is "".

    Raises:
        ValueError: the scheme is unknown, or a tag is not of the scheme.

    >>> spans(["B-PER", "I-PER", "O", "I-LOC"])
    [(0, 2, 'PER'), (3, 4, 'LOC')]
    >>> spans(["B", "E", "S"], "BMES")
    [(0, 2, ''), (2, 3, '')]
    """
    found: list[tuple[int, int, str]] = []
    start, open_type, role_before = -1, "", _OUTSIDE
    for i, tag in enumerate(tags):
        role, kind = _parse(tag, scheme)
        begins = role in (_BEGIN, _SINGLE) or (
            role in (_INSIDE, _END) and (role_before >= _END or kind != open_type)
        )  # eq. (2)
        if start >= 0 and (begins or role == _OUTSIDE):
            found.append((start, i, open_type))
            start = -1
        if begins:
            start, open_type = i, kind
        role_before = role
    if start >= 0:
        found.append((start, len(tags), open_type))
    return found


def tags_from_spans(spans: Iterable[tuple[int, int, str]], length: int, scheme: str = "BIO") -> list[str]:
    """Tags that write the given spans; the inverse of `spans` on well-formed tags.

    Args:
        spans: (start, end exclusive, type) triples in any order, disjoint, each at least one token long.
        length: number of tokens of the sentence.
        scheme: one of SCHEMES.

    Returns:
        One tag per token, "O" outside the spans.

    Raises:
        ValueError: the scheme is unknown, a span is empty or leaves the sentence, or two spans overlap.

    >>> tags_from_spans([(0, 3, "PER"), (4, 5, "LOC")], 5, "BMES")
    ['B-PER', 'M-PER', 'E-PER', 'O', 'S-LOC']
    """
    letters = _letters(scheme)
    tags = ["O"] * length
    previous = (0, 0, "")
    for start, end, kind in sorted(spans):
        if not 0 <= start < end <= length:
            raise ValueError(
                f"a span must satisfy 0 <= start < end <= {length} (the sentence's length; end is exclusive), "
                f"got start {start}, end {end}, type {kind!r}"
            )
        if start < previous[1]:
            raise ValueError(
                f"spans must not overlap, got {previous} and {(start, end, kind)}; tags hold one span per token, "
                f"so keep one of the two"
            )
        suffix = f"-{kind}" if kind else ""
        size = end - start
        if len(letters) == 2:
            touches = scheme != "IOB1" or (start > 0 and previous[1] == start and previous[2] == kind)
            tags[start] = (letters[_BEGIN] if touches else letters[_INSIDE]) + suffix
            tags[start + 1 : end] = [letters[_INSIDE] + suffix] * (size - 1)
        elif size == 1:
            tags[start] = letters[_SINGLE] + suffix
        else:
            tags[start] = letters[_BEGIN] + suffix
            tags[start + 1 : end - 1] = [letters[_INSIDE] + suffix] * (size - 2)
            tags[end - 1] = letters[_END] + suffix
        previous = (start, end, kind)
    return tags


def convert_tags(tags: Sequence[str], source: str, target: str) -> list[str]:
    """Tags of another scheme for the same spans.

    Args:
        tags: tags of one sentence in the scheme `source`, read leniently.
        source: one of SCHEMES.
        target: one of SCHEMES.

    Returns:
        Well-formed tags in the scheme `target`.

    Raises:
        ValueError: a scheme is unknown, or a tag is not of the scheme `source`.

    >>> convert_tags(["I-PER", "I-PER", "B-PER"], "IOB1", "BIOES")
    ['B-PER', 'E-PER', 'S-PER']
    """
    return tags_from_spans(spans(tags, source), len(tags), target)


def repair_tags(tags: Sequence[str], scheme: str = "BIO") -> list[str]:
    """The well-formed tags whose spans are those that a lenient reader finds in `tags`.

    Args:
        tags: tags of one sentence, possibly with illegal steps.
        scheme: one of SCHEMES.

    Returns:
        Tags without illegal steps; well-formed tags come back unchanged.

    Raises:
        ValueError: the scheme is unknown, or a tag is not of the scheme.

    >>> repair_tags(["O", "I-PER", "I-LOC"])
    ['O', 'B-PER', 'B-LOC']
    """
    return convert_tags(tags, scheme, scheme)


def illegal_steps(tags: Sequence[str], scheme: str = "BIO") -> list[int]:
    """Positions at which the scheme breaks its own rules, eq. (3).

    Args:
        tags: tags of one sentence.
        scheme: one of SCHEMES.

    Returns:
        Every i whose tag may not follow tag i - 1 (0: may not open a sentence), and len(tags) if the last tag may not
        end one.

    Raises:
        ValueError: the scheme is unknown, or a tag is not of the scheme.

    >>> illegal_steps(["O", "I-PER", "I-PER"])
    [1]
    >>> illegal_steps(["B", "S", "B"], "BMES")  # a word is left open before position 1 and at the end
    [1, 3]
    """
    steps = []
    before: str | None = None
    for i, tag in enumerate(tags):
        if not _may_follow(before, tag, scheme):
            steps.append(i)
        before = tag
    if not _may_follow(before, None, scheme):
        steps.append(len(tags))
    return steps


def allowed_transitions(labels: Sequence[str], scheme: str = "BIO") -> tuple[Tensor, Tensor, Tensor]:
    """Which label may follow which, open a sentence and end one, by eq. (3); the `constraints` of the tagging heads.

    Args:
        labels: the K labels in the order of the tag ids.
        scheme: one of SCHEMES.

    Returns:
        Bool tensors (allowed (K, K), start (K,), end (K,)); allowed[i, j] is True when label j may follow label i.

    Raises:
        ValueError: the scheme is unknown, a label is not of the scheme or given twice, or no sentence is possible.

    >>> allowed, start, end = allowed_transitions(["O", "B-X", "I-X"])
    >>> allowed.int().tolist()  # only O -> I-X is forbidden
    [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    >>> start.tolist(), end.tolist()
    ([True, True, False], [True, True, True])
    """
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise ValueError(f"labels must differ from one another, {twice!r} is given twice")
    size = len(labels)
    follows = [_may_follow(a, b, scheme) for a in labels for b in labels]
    allowed = torch.tensor(follows, dtype=torch.bool).reshape(size, size)  # (K, K)
    start = torch.tensor([_may_follow(None, label, scheme) for label in labels], dtype=torch.bool)  # (K,)
    end = torch.tensor([_may_follow(label, None, scheme) for label in labels], dtype=torch.bool)  # (K,)
    if not (bool(start.any()) and bool(end.any())):
        raise ValueError(
            f"no sentence can be written with the labels {list(labels)} under {scheme}: none may "
            f"{'end' if start.any() else 'open'} one; add the missing labels (scheme_labels lists them all)"
        )
    return allowed, start, end


def scheme_labels(types: Iterable[str], scheme: str = "BIO", outside: bool = True) -> list[str]:
    """All labels that a scheme can write for the given types.

    Args:
        types: span types; "" gives bare prefixes.
        scheme: one of SCHEMES.
        outside: put "O" first; word segmentation has none.

    Returns:
        "O" if asked for, then for each type in the given order its labels in the order of eq. (1).

    Raises:
        ValueError: the scheme is unknown.

    >>> scheme_labels([""], "BMES", outside=False)
    ['B', 'M', 'E', 'S']
    >>> scheme_labels(["LOC", "PER"])
    ['O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER']
    """
    letters = _letters(scheme)
    names = [letter + (f"-{kind}" if kind else "") for kind in types for letter in letters]
    return ["O", *names] if outside else names


def detect_scheme(labels: Iterable[str]) -> str:
    """The scheme that a set of labels is written in.

    "M" means BMES, "L" or "U" BILOU, "I" beside "E" or "S" BIOES, "I" beside "B" BIO, "I" alone IOB1. "B", "E", "S"
    without "I" and "M" read the same in BMES and BIOES: BMES if "O" is absent or the labels have no types, else BIOES.
    IOB1 whose labels include a "B" looks like BIO; reading it so finds the same spans.

    Args:
        labels: the distinct labels of a data set.

    Returns:
        One of SCHEMES.

    Raises:
        ValueError: a label is not a tag of any scheme, two schemes are mixed, or nothing but "O" is there.

    >>> detect_scheme(["O", "B-PER", "I-PER"]), detect_scheme("BMES")
    ('BIO', 'BMES')
    """
    labels = sorted(set(labels))
    letters = set()
    for label in labels:
        letter, kind = split_tag(label)
        if letter not in tuple("BIMELSU") or (label[1:2] not in ("", "-")) or (len(label) > 1 and not kind):
            if label == "O":
                continue
            hint = ""
            if label[:1] in tuple("BIMELSU") and label[1:2] in tuple("_.:/ "):
                hint = f"; write {label[0]}-{label[2:]} instead"
            raise ValueError(
                f"cannot tell the tag scheme: {label!r} is not 'O', a prefix or PREFIX-TYPE with a prefix of "
                f"B, I, M, E, S, L, U (schemes {', '.join(SCHEMES)}){hint}"
            )
        letters.add(letter)
    if not letters:
        raise ValueError(
            f"cannot tell the tag scheme from the labels {labels}: nothing but 'O'; "
            f"name it (scheme='BIO'; allowed {', '.join(SCHEMES)})"
        )
    fits = [name for name in SCHEMES if letters <= set(_LETTERS[name])]
    if not fits:
        raise ValueError(
            f"cannot tell the tag scheme: the prefixes {', '.join(sorted(letters))} belong to no one scheme of "
            f"{', '.join(SCHEMES)}; convert the tags to one of them"
        )
    if "BIO" in fits:
        return "BIO" if "B" in letters else "IOB1"
    if "BMES" in fits and "BIOES" in fits:
        plain = "O" not in labels or all(len(label) == 1 for label in labels)
        return "BMES" if plain else "BIOES"
    return fits[0]


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag, parted at the first "-".

    Args:
        tag: a tag such as "B-PER", "B" or "O".

    Returns:
        (prefix, type); the type is "" when there is none.

    >>> split_tag("B-PER-NAM"), split_tag("O")
    (('B', 'PER-NAM'), ('O', ''))
    """
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def _letters(scheme: str) -> str:
    if scheme not in _LETTERS:
        raise ValueError(f"unknown tag scheme {scheme!r}; allowed are {', '.join(SCHEMES)}")
    return _LETTERS[scheme]


@lru_cache(maxsize=65536)  # tags repeat: a corpus has millions of them and a few dozen different ones
def _parse(tag: str, scheme: str) -> tuple[int, str]:
    """Role and type of a tag; the role counts eq. (1)'s columns from 0, outside is last."""
    letters = _letters(scheme)
    prefix, dash, kind = tag.partition("-") if isinstance(tag, str) else ("", "", "")
    if tag == "O":
        return _OUTSIDE, ""
    if len(prefix) == 1 and prefix in letters and (kind or not dash):
        return letters.index(prefix), kind
    raise ValueError(
        f"{tag!r} is not a tag of {scheme}: expected 'O' or one of {', '.join(letters)} alone or followed by -TYPE"
    )


@lru_cache(maxsize=65536)
def _may_follow(before: str | None, after: str | None, scheme: str) -> bool:
    """Strict rule of eq. (3); None stands for the edge of the sentence."""
    role, kind = (_OUTSIDE, "") if before is None else _parse(before, scheme)
    next_role, next_kind = (_OUTSIDE, "") if after is None else _parse(after, scheme)
    same = role != _OUTSIDE and next_role != _OUTSIDE and kind == next_kind
    if scheme == "IOB1":  # I opens a span anywhere, B only parts two neighbours of one type
        return next_role != _BEGIN or same
    continues = next_role in (_INSIDE, _END)
    if len(_letters(scheme)) == 2:
        return same if continues else True
    is_open = role in (_BEGIN, _INSIDE)
    return (continues and same) if is_open else not continues
