"""Readers of the user's files, examples, embedded data sets."""

from danlu.data.embedded import (
    Splits,
    load_digits,
    load_peoples_daily,
    load_reviews,
)
from danlu.data.errors import InputError, WorkError
from danlu.data.readers import read_labelled, read_tagged, read_texts
from danlu.data.rows import BadRow, Corpus
from danlu.data.tagged import Labelled, Tagged, join_tokens

__all__ = [
    "BadRow",
    "Corpus",
    "InputError",
    "Labelled",
    "Splits",
    "Tagged",
    "WorkError",
    "join_tokens",
    "load_digits",
    "load_peoples_daily",
    "load_reviews",
    "read_labelled",
    "read_tagged",
    "read_texts",
]
