"""Text models and what they read: vocabularies, encoders."""

from danlu.text.char_encoder import CharEncoder
from danlu.text.char_vocab import CharVocab
from danlu.text.tf_checkpoint import TFCheckpoint, open_checkpoint
from danlu.text.tf_checkpoint_writer import save_checkpoint

__all__ = ["CharEncoder", "CharVocab", "TFCheckpoint", "open_checkpoint", "save_checkpoint"]
