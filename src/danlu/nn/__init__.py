"""Layers: one method a file."""

from danlu.nn.actnorm import ActNorm, standardize_channels
from danlu.nn.aquarium import Aquarium, as_nitrogen, first_crossing
from danlu.nn.attention import AttentionContext, MultiHeadAttention, attend, causal_mask, unilm_mask
from danlu.nn.attention_kinds import ATTENTIONS, LowCostAttention, SyntheticAttention, build_attention
from danlu.nn.attention_pool import AttentionPool1d, attention_pool
from danlu.nn.conditional_norm import Norm
from danlu.nn.coupling import Coupling, affine_coupling, checkerboard, coupling_log_scale, coupling_sizes
from danlu.nn.crf import CRF, crf_log_partition, crf_marginals, crf_nll
from danlu.nn.crf_decode import sample_paths, viterbi, viterbi_nbest
from danlu.nn.decode_layers import DecodeLayer, DecodeLayers
from danlu.nn.dgcnn import DGCNN, DilatedGatedConv1d
from danlu.nn.dropout import dropout
from danlu.nn.equalized import equalized
from danlu.nn.feed_forward import FeedForward
from danlu.nn.gated_attention_unit import GatedAttentionUnit
from danlu.nn.global_pointer import EfficientGlobalPointer, GlobalPointer, decode_spans
from danlu.nn.invertible import ChannelPermutation, Flatten, InvertibleSequential, Squeeze, channel_log_det
from danlu.nn.invertible_linear import InvertibleLinear, channel_linear, channel_solve, random_rotation
from danlu.nn.kv_cache import KVCache
from danlu.nn.landmarks import segment_means
from danlu.nn.linear_attention import elu_log_features, favor_log_features, linear_attention, orthogonal_projection
from danlu.nn.memm import MEMM, memm_chain, memm_nll
from danlu.nn.modulated_norm import ModulatedNorm
from danlu.nn.nystrom import nystrom_attention
from danlu.nn.nystrom_factors import NystromFactors, nystrom_factors
from danlu.nn.nystrom_layer import NystromAttention
from danlu.nn.ode_cell import ODECell, SolverRNN, scan
from danlu.nn.ode_fit import Observations, ODEFit, fit_ode
from danlu.nn.ode_systems import Competition, Logistic, ODESystem, Pendulum, PredatorPrey
from danlu.nn.ode_uncertainty import bootstrap_ode, ode_band, profile_ode, sample_ode
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
from danlu.nn.self_modulation import SelfModulated
from danlu.nn.self_terminating import SelfTerminatingHead, guaranteed_steps, self_terminating_log_probs
from danlu.nn.softmax_head import SoftmaxHead, softmax_nll
from danlu.nn.span_pointer import SpanPointer, best_spans, span_log_probs, span_nll
from danlu.nn.spectral_norm import SpectralNorm, spectral_norm
from danlu.nn.steering import add_condition, bake, condition, guided_logits
from danlu.nn.synthesizer import SYNTHESIZER_MODES, SynthesizerAttention, synthesizer_attention, synthesizer_weights
from danlu.nn.synthetic_scores import dense_scores, factorized_dense_scores, factorized_random_scores, mix_scores

__all__ = [
    "ATTENTIONS",
    "CRF",
    "DGCNN",
    "MEMM",
    "SYNTHESIZER_MODES",
    "ActNorm",
    "Aquarium",
    "AttentionContext",
    "AttentionPool1d",
    "ChannelPermutation",
    "Competition",
    "Coupling",
    "DecodeLayer",
    "DecodeLayers",
    "DilatedGatedConv1d",
    "EfficientGlobalPointer",
    "FeedForward",
    "Flatten",
    "GatedAttentionUnit",
    "GlobalPointer",
    "InvertibleLinear",
    "InvertibleSequential",
    "KVCache",
    "Logistic",
    "LowCostAttention",
    "ModulatedNorm",
    "MultiHeadAttention",
    "Norm",
    "NystromAttention",
    "NystromFactors",
    "ODECell",
    "ODEFit",
    "ODESystem",
    "Observations",
    "PackedLinear",
    "Pendulum",
    "PredatorPrey",
    "SelfModulated",
    "SelfTerminatingHead",
    "SoftmaxHead",
    "SolverRNN",
    "SpanPointer",
    "SpectralNorm",
    "Squeeze",
    "SynthesizerAttention",
    "SyntheticAttention",
    "add_condition",
    "affine_coupling",
    "apply_rotary",
    "as_nitrogen",
    "attend",
    "attention_pool",
    "bake",
    "best_spans",
    "bootstrap_ode",
    "build_attention",
    "causal_mask",
    "channel_linear",
    "channel_log_det",
    "channel_solve",
    "checkerboard",
    "clipped_distances",
    "condition",
    "coupling_log_scale",
    "coupling_sizes",
    "crf_log_partition",
    "crf_marginals",
    "crf_nll",
    "decode_spans",
    "dense_scores",
    "dropout",
    "elu_log_features",
    "equalized",
    "factorized_dense_scores",
    "factorized_random_scores",
    "favor_log_features",
    "first_crossing",
    "fit_ode",
    "guaranteed_steps",
    "guided_logits",
    "hierarchical_positions",
    "linear_attention",
    "memm_chain",
    "memm_nll",
    "mix_scores",
    "nystrom_attention",
    "nystrom_factors",
    "ode_band",
    "orthogonal_projection",
    "pack_linears",
    "packed_attention",
    "pool",
    "profile_ode",
    "random_rotation",
    "rotary_angles",
    "sample_ode",
    "sample_paths",
    "scan",
    "segment_means",
    "self_terminating_log_probs",
    "sinusoidal_positions",
    "softmax_nll",
    "span_log_probs",
    "span_nll",
    "spectral_norm",
    "standardize_channels",
    "synthesizer_attention",
    "synthesizer_weights",
    "t5_buckets",
    "unilm_mask",
    "viterbi",
    "viterbi_nbest",
]
