"""Readers of the user's files, examples, embedded data sets."""

from danlu.data.conllu import Parsed, read_conllu
from danlu.data.corpus import TokenCorpus, Windows, write_corpus
from danlu.data.embedded import (
    Splits,
    load_digits,
    load_peoples_daily,
    load_reviews,
)
from danlu.data.errors import InputError, WorkError
from danlu.data.items import grouped_items, read_items
from danlu.data.labelled import read_labelled
from danlu.data.ledger import BadRow, Corpus
from danlu.data.pairs import Condition, Pair, read_condition, read_pairs
from danlu.data.pairs_labelled import LabelledPair, read_labelled_pairs
from danlu.data.reading import Answer, Question, read_questions
from danlu.data.sentences import TextGroup, read_sentences, text_groups
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
from danlu.data.stream_loader import StreamLoader
from danlu.data.streaming import Stream, StreamError
from danlu.data.tagged import Labelled, Tagged, join_tokens
from danlu.data.tagging import read_tagged
from danlu.data.texts import read_texts
from danlu.data.triples import Related, Relation, read_triples
from danlu.data.word_pairs import Analogy, read_analogies, read_word_pairs

__all__ = [
    "Analogy",
    "Answer",
    "BadRow",
    "Condition",
    "Corpus",
    "IndexedLines",
    "InputError",
    "Labelled",
    "LabelledPair",
    "Pair",
    "Parsed",
    "Question",
    "Related",
    "Relation",
    "Splits",
    "Stream",
    "StreamError",
    "StreamLoader",
    "Tagged",
    "TextGroup",
    "TokenCorpus",
    "Windows",
    "WorkError",
    "grouped_items",
    "join_tokens",
    "load_digits",
    "load_peoples_daily",
    "load_reviews",
    "longest_common_subsequence",
    "longest_common_substring",
    "pad_sequences",
    "parallel_map",
    "read_analogies",
    "read_condition",
    "read_conllu",
    "read_items",
    "read_labelled",
    "read_labelled_pairs",
    "read_pairs",
    "read_questions",
    "read_sentences",
    "read_tagged",
    "read_texts",
    "read_triples",
    "read_word_pairs",
    "segment_text",
    "text_groups",
    "to_half_width",
    "truncate",
    "truncate_longest_first",
    "truncated_lengths",
    "write_corpus",
]
