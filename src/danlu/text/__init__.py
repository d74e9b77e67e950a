"""Text models and what they read: vocabularies, encoders."""

from danlu.text.beam_search import beam_search
from danlu.text.bert4keras_decoding import AutoRegressiveDecoder
from danlu.text.cached_steps import EncoderDecoderSteps, TransformerSteps
from danlu.text.char_encoder import CharEncoder
from danlu.text.char_vocab import CharVocab
from danlu.text.decoding import greedy, sample, stream
from danlu.text.family_guess import Guess, guess
from danlu.text.generated import Generated
from danlu.text.google_config import from_google, to_google
from danlu.text.hf_adapter import HFEncoder
from danlu.text.hf_config import from_hf, to_hf
from danlu.text.keras_file import read_keras_weights
from danlu.text.keras_names import keras_slots
from danlu.text.keras_weights import load_keras_weights
from danlu.text.load_hf import load_hf
from danlu.text.load_report import LoadError, LoadReport
from danlu.text.load_tf import inspect_tf, load_tf, save_tf
from danlu.text.rebalanced_encoding import RebalancedEncoding
from danlu.text.sampling_filters import no_repeat_ngram, repetition_penalty, top_k_filter, top_p_filter
from danlu.text.save_hf import save_hf
from danlu.text.sentencepiece_tokenizer import SpTokenizer
from danlu.text.steps import FunctionSteps, Steps
from danlu.text.tf_checkpoint import TFCheckpoint, open_checkpoint
from danlu.text.tf_checkpoint_writer import save_checkpoint
from danlu.text.tf_names import tf_names
from danlu.text.tokenizer import Encoding, Tokenizer
from danlu.text.vocabulary import load_vocab, save_vocab, simplify_vocab
from danlu.text.vocabulary_surgery import (
    autoresize,
    compound,
    orthogonally_resize,
    prune,
    resize_vocabulary,
    resized_config,
)

__all__ = [
    "AutoRegressiveDecoder",
    "CharEncoder",
    "CharVocab",
    "EncoderDecoderSteps",
    "Encoding",
    "FunctionSteps",
    "Generated",
    "Guess",
    "HFEncoder",
    "LoadError",
    "LoadReport",
    "RebalancedEncoding",
    "SpTokenizer",
    "Steps",
    "TFCheckpoint",
    "Tokenizer",
    "TransformerSteps",
    "autoresize",
    "beam_search",
    "compound",
    "from_google",
    "from_hf",
    "greedy",
    "guess",
    "inspect_tf",
    "keras_slots",
    "load_hf",
    "load_keras_weights",
    "load_tf",
    "load_vocab",
    "no_repeat_ngram",
    "open_checkpoint",
    "orthogonally_resize",
    "prune",
    "read_keras_weights",
    "repetition_penalty",
    "resize_vocabulary",
    "resized_config",
    "sample",
    "save_checkpoint",
    "save_hf",
    "save_tf",
    "save_vocab",
    "simplify_vocab",
    "stream",
    "tf_names",
    "to_google",
    "to_hf",
    "top_k_filter",
    "top_p_filter",
]
