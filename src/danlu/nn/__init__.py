"""Layers: one method a file."""

from danlu.nn.attention import AttentionContext, MultiHeadAttention, attend, causal_mask, unilm_mask
from danlu.nn.attention_pool import AttentionPool1d, attention_pool
from danlu.nn.conditional_norm import Norm
from danlu.nn.crf import CRF, crf_log_partition, crf_marginals, crf_nll
from danlu.nn.crf_decode import sample_paths, viterbi, viterbi_nbest
from danlu.nn.decode_layers import DecodeLayer, DecodeLayers
from danlu.nn.dgcnn import DGCNN, DilatedGatedConv1d
from danlu.nn.dropout import dropout
from danlu.nn.feed_forward import FeedForward
from danlu.nn.gated_attention_unit import GatedAttentionUnit
from danlu.nn.global_pointer import EfficientGlobalPointer, GlobalPointer, decode_spans
from danlu.nn.kv_cache import KVCache
from danlu.nn.memm import MEMM, memm_chain, memm_nll
from danlu.nn.packed_attention import packed_attention
from danlu.nn.packed_linear import PackedLinear, pack_linears
from danlu.nn.pooling import pool
from danlu.nn.positions import (
    apply_rotary,
    clipped_distances,
    hierarchical_positions,
    rotary_angles,
    sinusoidal_positions,
    t5_buckets,
)
from danlu.nn.self_terminating import SelfTerminatingHead, guaranteed_steps, self_terminating_log_probs
from danlu.nn.softmax_head import SoftmaxHead, softmax_nll
from danlu.nn.span_pointer import SpanPointer, best_spans, span_log_probs, span_nll
from danlu.nn.spectral_norm import SpectralNorm, spectral_norm
from danlu.nn.steering import add_condition, bake, condition, guided_logits

__all__ = [
    "AttentionContext",
    "AttentionPool1d",
    "CRF",
    "DGCNN",
    "DecodeLayer",
    "DecodeLayers",
    "DilatedGatedConv1d",
    "EfficientGlobalPointer",
    "FeedForward",
    "GatedAttentionUnit",
    "GlobalPointer",
    "KVCache",
    "MEMM",
    "MultiHeadAttention",
    "Norm",
    "PackedLinear",
    "SelfTerminatingHead",
    "SoftmaxHead",
    "SpanPointer",
    "SpectralNorm",
    "add_condition",
    "apply_rotary",
    "attend",
    "attention_pool",
    "bake",
    "best_spans",
    "causal_mask",
    "clipped_distances",
    "condition",
    "crf_log_partition",
    "crf_marginals",
    "crf_nll",
    "decode_spans",
    "dropout",
    "guaranteed_steps",
    "guided_logits",
    "hierarchical_positions",
    "memm_chain",
    "memm_nll",
    "pack_linears",
    "packed_attention",
    "pool",
    "rotary_angles",
    "sample_paths",
    "self_terminating_log_probs",
    "sinusoidal_positions",
    "softmax_nll",
    "span_log_probs",
    "span_nll",
    "spectral_norm",
    "t5_buckets",
    "unilm_mask",
    "viterbi",
    "viterbi_nbest",
]
