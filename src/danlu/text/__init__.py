"""Text models and what they read: vocabularies, encoders."""

from danlu.text.char_encoder import CharEncoder
from danlu.text.char_vocab import CharVocab

__all__ = ["CharEncoder", "CharVocab"]
