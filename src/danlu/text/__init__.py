"""Text models: transformer families, their checkpoints, tokenizers, decoding; a light character encoder."""

from danlu.text.beam_search import beam_search
from danlu.text.bert4keras_decoding import AutoRegressiveDecoder
from danlu.text.cached_steps import EncoderDecoderSteps, TransformerSteps
from danlu.text.casrel import CasRel
from danlu.text.char_encoder import CharEncoder
from danlu.text.char_vocab import CharVocab
from danlu.text.config import FAMILIES, Family, TransformerConfig
from danlu.text.convert_model import Conversion, convert_model
from danlu.text.decoding import greedy, sample, stream
from danlu.text.dgcnn_reader import DGCNNReader, ReaderOutput, reader_log_probs
from danlu.text.encoder_decoder import EncoderDecoder
from danlu.text.family_guess import Guess, guess
from danlu.text.generated import Generated
from danlu.text.google_config import from_google, to_google
from danlu.text.gplinker import GPLinker, gplinker_loss, link_triples
from danlu.text.hf_adapter import HFEncoder
from danlu.text.hf_config import from_hf, to_hf
from danlu.text.inference import for_inference
from danlu.text.inspect_model import Inspection, inspect_model
from danlu.text.jose import JoSE, load_jose, train_jose
from danlu.text.jose_trainer import JoSEConfig, JoSEProgress, JoSETrainer
from danlu.text.keras_file import read_keras_weights
from danlu.text.keras_names import keras_slots
from danlu.text.keras_weights import load_keras_weights
from danlu.text.load_hf import load_hf
from danlu.text.load_model import load_model, model_kind
from danlu.text.load_report import LoadError, LoadReport
from danlu.text.load_tf import inspect_tf, load_tf, save_tf
from danlu.text.masking import mask_words
from danlu.text.onnx_export import export_onnx
from danlu.text.ppmi_vectors import ppmi_vectors
from danlu.text.rebalanced_encoding import RebalancedEncoding
from danlu.text.sampling_filters import no_repeat_ngram, repetition_penalty, top_k_filter, top_p_filter
from danlu.text.save_hf import save_hf
from danlu.text.sentence_vectors import POOLINGS, pool_layers, sentence_vectors, word_averages
from danlu.text.sentencepiece_tokenizer import SpTokenizer
from danlu.text.single_stack import Transformer, TransformerOutput
from danlu.text.steps import FunctionSteps, Steps
from danlu.text.tf_checkpoint import TFCheckpoint, open_checkpoint
from danlu.text.tf_checkpoint_writer import save_checkpoint
from danlu.text.tf_names import tf_names
from danlu.text.tokenizer import Encoding, Tokenizer
from danlu.text.transformer import build_transformer
from danlu.text.vocabulary import load_vocab, save_vocab, simplify_vocab
from danlu.text.vocabulary_surgery import (
    autoresize,
    compound,
    orthogonally_resize,
    prune,
    resize_vocabulary,
    resized_config,
)
from danlu.text.whitening import Axes, participation_ratio, principal_axes, whiten, whitening
from danlu.text.whitening_choice import WhiteningChoice, choose_whitening
from danlu.text.whitening_module import WhiteningModule
from danlu.text.whitening_transformer import Whitening
from danlu.text.word2vec_file import read_word2vec, write_word2vec
from danlu.text.word_corpus import WordCorpus, build_corpus
from danlu.text.word_vectors import Agreement, WordVectors, analogy_scores, nearest_rows, word_similarity

__all__ = [
    "Agreement",
    "AutoRegressiveDecoder",
    "Axes",
    "CasRel",
    "CharEncoder",
    "CharVocab",
    "Conversion",
    "DGCNNReader",
    "EncoderDecoder",
    "EncoderDecoderSteps",
    "Encoding",
    "FAMILIES",
    "Family",
    "FunctionSteps",
    "GPLinker",
    "Generated",
    "Guess",
    "HFEncoder",
    "Inspection",
    "JoSE",
    "JoSEConfig",
    "JoSEProgress",
    "JoSETrainer",
    "LoadError",
    "LoadReport",
    "POOLINGS",
    "ReaderOutput",
    "RebalancedEncoding",
    "SpTokenizer",
    "Steps",
    "TFCheckpoint",
    "Tokenizer",
    "Transformer",
    "TransformerConfig",
    "TransformerOutput",
    "TransformerSteps",
    "Whitening",
    "WhiteningChoice",
    "WhiteningModule",
    "WordCorpus",
    "WordVectors",
    "analogy_scores",
    "autoresize",
    "beam_search",
    "build_corpus",
    "build_transformer",
    "choose_whitening",
    "compound",
    "convert_model",
    "export_onnx",
    "for_inference",
    "from_google",
    "from_hf",
    "gplinker_loss",
    "greedy",
    "guess",
    "inspect_model",
    "inspect_tf",
    "keras_slots",
    "link_triples",
    "load_hf",
    "load_jose",
    "load_keras_weights",
    "load_model",
    "load_tf",
    "load_vocab",
    "mask_words",
    "model_kind",
    "nearest_rows",
    "no_repeat_ngram",
    "open_checkpoint",
    "orthogonally_resize",
    "participation_ratio",
    "pool_layers",
    "ppmi_vectors",
    "principal_axes",
    "prune",
    "read_keras_weights",
    "read_word2vec",
    "reader_log_probs",
    "repetition_penalty",
    "resize_vocabulary",
    "resized_config",
    "sample",
    "save_checkpoint",
    "save_hf",
    "save_tf",
    "save_vocab",
    "sentence_vectors",
    "simplify_vocab",
    "stream",
    "tf_names",
    "to_google",
    "to_hf",
    "top_k_filter",
    "top_p_filter",
    "train_jose",
    "whiten",
    "whitening",
    "word_averages",
    "word_similarity",
    "write_word2vec",
]
