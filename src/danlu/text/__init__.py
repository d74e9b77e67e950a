"""Text models and what they read: vocabularies, encoders."""

from danlu.text.char_encoder import CharEncoder
from danlu.text.char_vocab import CharVocab
from danlu.text.sentencepiece_tokenizer import SpTokenizer
from danlu.text.tf_checkpoint import TFCheckpoint, open_checkpoint
from danlu.text.tf_checkpoint_writer import save_checkpoint
from danlu.text.tokenizer import Encoding, Tokenizer
from danlu.text.vocabulary import load_vocab, save_vocab, simplify_vocab

__all__ = [
    "CharEncoder",
    "CharVocab",
    "Encoding",
    "SpTokenizer",
    "TFCheckpoint",
    "Tokenizer",
    "load_vocab",
    "open_checkpoint",
    "save_checkpoint",
    "save_vocab",
    "simplify_vocab",
]
