"""Tensor functions without parameters."""

from danlu.math.activations import activation, activation_name, gelu
from danlu.math.answer_metrics import answer_f1, answer_match, answer_scores, answer_segments
from danlu.math.answer_vote import vote
from danlu.math.attention_normalize import attention_normalize, softmax_plus_scale
from danlu.math.conv_norm import conv_norm, conv_norm_bound, reshaped_norm
from danlu.math.correlation import pearson, spearman
from danlu.math.evidence_features import (
    evidence_features,
    passage_overlap,
    question_overlap,
    window_edit_similarity,
    window_jaccard,
)
from danlu.math.generation_metrics import bleu, distinct_n, lcs_length, position_accuracy, rouge_l, rouge_n
from danlu.math.gradient_gram import gram_matrix
from danlu.math.gradient_weights import (
    dual_cone_weights,
    gradient_cosines,
    normalized_weights,
    pcgrad_weights,
    primary_weights,
)
from danlu.math.metrics import (
    CalibrationBin,
    Report,
    Score,
    accuracy,
    calibration_bins,
    class_report,
    confusion_matrix,
    expected_calibration_error,
    f1_from_counts,
    report_from_counts,
    score_from_counts,
    span_confusion,
    span_counts,
    span_report,
    tag_accuracy,
)
from danlu.math.min_norm_point import min_norm_weights
from danlu.math.nonnegative_minimum import nonnegative_minimum
from danlu.math.reduce import reduce_loss
from danlu.math.relaxation import (
    gumbel_max,
    gumbel_softmax,
    relaxed_bernoulli,
    straight_through_bernoulli,
    straight_through_onehot,
)
from danlu.math.repetition_metrics import longest_repeat, loop_counts, loop_period, rep_w, seq_rep_n
from danlu.math.semiring import (
    chain_backward,
    chain_entropy,
    chain_forward,
    chain_inputs,
    chain_marginals,
    logsumexp,
)
from danlu.math.singular import power_iteration, top_singular
from danlu.math.smooth import sharpness_at, smooth_argmax, smooth_max, smooth_min, smooth_onehot, smooth_rank
from danlu.math.smooth_bound import smooth_bound
from danlu.math.smooth_step import (
    hard_forward,
    smooth_abs,
    smooth_floor,
    smooth_relu,
    smooth_round,
    smooth_sign,
    smooth_step,
)
from danlu.math.smooth_topk import TOPK_METHODS, smooth_topk
from danlu.math.soft_confusion import soft_confusion
from danlu.math.tag_scheme import (
    SCHEMES,
    allowed_transitions,
    convert_tags,
    detect_scheme,
    illegal_steps,
    repair_tags,
    scheme_labels,
    spans,
    split_tag,
    tags_from_spans,
)
from danlu.math.task_direction import direction_weights
from danlu.math.triple_metrics import overlap_kinds, triple_breakdown, triple_counts, triple_report

__all__ = [
    "SCHEMES",
    "TOPK_METHODS",
    "CalibrationBin",
    "Report",
    "Score",
    "accuracy",
    "activation",
    "activation_name",
    "allowed_transitions",
    "answer_f1",
    "answer_match",
    "answer_scores",
    "answer_segments",
    "attention_normalize",
    "bleu",
    "calibration_bins",
    "chain_backward",
    "chain_entropy",
    "chain_forward",
    "chain_inputs",
    "chain_marginals",
    "class_report",
    "confusion_matrix",
    "conv_norm",
    "conv_norm_bound",
    "convert_tags",
    "detect_scheme",
    "direction_weights",
    "distinct_n",
    "dual_cone_weights",
    "evidence_features",
    "expected_calibration_error",
    "f1_from_counts",
    "gelu",
    "gradient_cosines",
    "gram_matrix",
    "gumbel_max",
    "gumbel_softmax",
    "hard_forward",
    "illegal_steps",
    "lcs_length",
    "logsumexp",
    "longest_repeat",
    "loop_counts",
    "loop_period",
    "min_norm_weights",
    "nonnegative_minimum",
    "normalized_weights",
    "overlap_kinds",
    "passage_overlap",
    "pcgrad_weights",
    "pearson",
    "position_accuracy",
    "power_iteration",
    "primary_weights",
    "question_overlap",
    "reduce_loss",
    "relaxed_bernoulli",
    "rep_w",
    "repair_tags",
    "report_from_counts",
    "reshaped_norm",
    "rouge_l",
    "rouge_n",
    "scheme_labels",
    "score_from_counts",
    "seq_rep_n",
    "sharpness_at",
    "smooth_abs",
    "smooth_argmax",
    "smooth_bound",
    "smooth_floor",
    "smooth_max",
    "smooth_min",
    "smooth_onehot",
    "smooth_rank",
    "smooth_relu",
    "smooth_round",
    "smooth_sign",
    "smooth_step",
    "smooth_topk",
    "soft_confusion",
    "softmax_plus_scale",
    "span_confusion",
    "span_counts",
    "span_report",
    "spans",
    "spearman",
    "split_tag",
    "straight_through_bernoulli",
    "straight_through_onehot",
    "tag_accuracy",
    "tags_from_spans",
    "top_singular",
    "triple_breakdown",
    "triple_counts",
    "triple_report",
    "vote",
    "window_edit_similarity",
    "window_jaccard",
]
