"""Readers of the user's files, examples, embedded data sets."""

from danlu.data.embedded import (
    Splits,
    load_digits,
    load_peoples_daily,
    load_reviews,
)
from danlu.data.errors import InputError, WorkError
from danlu.data.readers import read_labelled, read_tagged
from danlu.data.rows import BadRow, Corpus
from danlu.data.sequences import (
    IndexedLines,
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
from danlu.data.tagged import Labelled, Tagged, join_tokens
from danlu.data.texts import read_texts

__all__ = [
    "BadRow",
    "Corpus",
    "IndexedLines",
    "InputError",
    "Labelled",
    "Splits",
    "Tagged",
    "WorkError",
    "join_tokens",
    "load_digits",
    "load_peoples_daily",
    "load_reviews",
    "longest_common_subsequence",
    "longest_common_substring",
    "pad_sequences",
    "parallel_map",
    "read_labelled",
    "read_tagged",
    "read_texts",
    "segment_text",
    "to_half_width",
    "truncate",
    "truncate_longest_first",
    "truncated_lengths",
]
