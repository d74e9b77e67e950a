"""Looking into models of anybody's making."""

from danlu.probe.attention_maps import AttentionMaps, attention_maps, head_distance, head_entropy
from danlu.probe.bigram import decoder_matrix, transition_matrix
from danlu.probe.estimator_report import EstimatorReport, compare_estimators, enumerated_gradient, estimator_report
from danlu.probe.impact_segments import build_lexicon, cut_threshold, cut_words
from danlu.probe.impact_trees import ImpactMatrix, impact_heads, impact_tree
from danlu.probe.lipschitz import (
    LayerBound,
    LipschitzReport,
    certified_radius,
    lipschitz_bound,
    lipschitz_report,
    local_lipschitz,
)
from danlu.probe.nystrom_report import AttentionInputs, NystromReport, attention_inputs, nystrom_report
from danlu.probe.path_attribution import PathAttribution
from danlu.probe.path_gradients import example_gradients, flat_parameters, path_jacobian
from danlu.probe.path_kernel import PathKernel
from danlu.probe.path_recorded import RecordedPath
from danlu.probe.perturbed_masking import impact_matrix, neighbour_scores
from danlu.probe.pieces import Pieces, text_pieces, word_pieces
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
from danlu.probe.tangent_kernel import tangent_kernel

__all__ = [
    "AttentionInputs",
    "AttentionMaps",
    "Cycle",
    "EstimatorReport",
    "ImpactMatrix",
    "LayerBound",
    "LipschitzReport",
    "NystromReport",
    "PathAttribution",
    "PathKernel",
    "Pieces",
    "RecordedPath",
    "SparseIndex",
    "attention_inputs",
    "attention_maps",
    "build_lexicon",
    "certified_radius",
    "compare_estimators",
    "cut_threshold",
    "cut_words",
    "decoder_matrix",
    "deterministic_cycles",
    "enumerated_gradient",
    "estimator_report",
    "example_gradients",
    "flat_parameters",
    "head_distance",
    "head_entropy",
    "impact_heads",
    "impact_matrix",
    "impact_tree",
    "lipschitz_bound",
    "lipschitz_report",
    "local_lipschitz",
    "neighbour_scores",
    "nystrom_report",
    "path_jacobian",
    "repetition_bound",
    "repetition_index",
    "repetition_index_sparse",
    "repetition_radius",
    "row_collision",
    "sampled_repetition_index",
    "tangent_kernel",
    "text_pieces",
    "top_cycles",
    "transition_matrix",
    "word_pieces",
]
