"""Looking into models of anybody's making."""

from danlu.probe.bigram import decoder_matrix, transition_matrix
from danlu.probe.repetition import (
    SparseIndex,
    deterministic_cycles,
    repetition_bound,
    repetition_index,
    repetition_index_sparse,
    repetition_radius,
    row_collision,
    sampled_repetition_index,
)
from danlu.probe.repetition_cycles import Cycle, top_cycles

__all__ = [
    "Cycle",
    "SparseIndex",
    "decoder_matrix",
    "deterministic_cycles",
    "repetition_bound",
    "repetition_index",
    "repetition_index_sparse",
    "repetition_radius",
    "row_collision",
    "sampled_repetition_index",
    "top_cycles",
    "transition_matrix",
]
