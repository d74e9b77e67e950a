"""Layers: one method a file."""

from danlu.nn.attention_pool import AttentionPool1d, attention_pool
from danlu.nn.crf import CRF, crf_log_partition, crf_marginals, crf_nll
from danlu.nn.crf_decode import sample_paths, viterbi, viterbi_nbest
from danlu.nn.dgcnn import DGCNN, DilatedGatedConv1d
from danlu.nn.memm import MEMM, memm_chain, memm_nll
from danlu.nn.softmax_head import SoftmaxHead, softmax_nll

__all__ = [
    "AttentionPool1d",
    "CRF",
    "DGCNN",
    "DilatedGatedConv1d",
    "MEMM",
    "SoftmaxHead",
    "attention_pool",
    "crf_log_partition",
    "crf_marginals",
    "crf_nll",
    "memm_chain",
    "memm_nll",
    "sample_paths",
    "softmax_nll",
    "viterbi",
    "viterbi_nbest",
]
