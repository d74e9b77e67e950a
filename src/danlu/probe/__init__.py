"""Looking into models of anybody's making."""

from danlu.probe.bigram import decoder_matrix, transition_matrix
from danlu.probe.estimator_report import EstimatorReport, compare_estimators, enumerated_gradient, estimator_report
from danlu.probe.lipschitz import (
    LayerBound,
    LipschitzReport,
    certified_radius,
    lipschitz_bound,
    lipschitz_report,
    local_lipschitz,
)
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
    "EstimatorReport",
    "LayerBound",
    "LipschitzReport",
    "SparseIndex",
    "certified_radius",
    "compare_estimators",
    "decoder_matrix",
    "deterministic_cycles",
    "enumerated_gradient",
    "estimator_report",
    "lipschitz_bound",
    "lipschitz_report",
    "local_lipschitz",
    "repetition_bound",
    "repetition_index",
    "repetition_index_sparse",
    "repetition_radius",
    "row_collision",
    "sampled_repetition_index",
    "top_cycles",
    "transition_matrix",
]
