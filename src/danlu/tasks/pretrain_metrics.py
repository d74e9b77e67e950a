r"""What a pretrained model is measured by, and what it must beat: guesses from counts, on the very same hidden tokens.

    unigram     the most frequent token
    bigram      argmax_w  p(w | l) p(r | w)        l, r the neighbours of the hidden place                   (1)
    p(b | a) = (c(a, b) + s p(b)) / (c(a) + s),    p(b) = c(b) / n,    s = 1                                 (2)

A neighbour that is hidden too, or special, takes no part in (1), and a language model is only shown l; without either
the guess is the unigram's. c counts the training text, within documents.

Source: own definitions; Jelinek and Mercer, 1980, for smoothing by the unigram.
Shapes: B rows, T tokens of a row, M places asked for, V tokens of the vocabulary, n tokens of the text.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu.data.corpus import TokenCorpus
from danlu.tasks.folder import read_json
from danlu.tasks.pretrain_loop import evaluate, evaluation_rows, hide, special_ids
from danlu.tasks.pretrain_spec import PretrainSpec, fresh_model
from danlu.tasks.state import FitResult
from danlu.text import Tokenizer, Transformer

__all__ = ["NeighbourCounts", "baselines", "measured"]
_SMOOTHING = 1.0  # s
_COUNTED = 50_000_000  # tokens of the training text at the most


class NeighbourCounts:
    """Counts of tokens and of neighbours in a corpus, to guess a token from, eqs. (1) and (2).

    Args:
        corpus: training text.
        vocab_size: V.
    """

    def __init__(self, corpus: TokenCorpus, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        ids = np.asarray(corpus.ids[:_COUNTED]).astype(np.int64)
        self.counts = np.bincount(ids, minlength=vocab_size).astype(np.float64)
        self.shares = self.counts / len(ids)
        ends = np.asarray(corpus.offsets[1:])
        within = np.ones(len(ids), bool)
        within[ends[ends <= len(ids)] - 1] = False  # the last token of a document has no right neighbour
        within = within[:-1]
        left, right = ids[:-1][within], ids[1:][within]
        self._after = _Counts(left * vocab_size + right, vocab_size)
        self._before = _Counts(right * vocab_size + left, vocab_size)

    def guess(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The best token between two neighbours.

        Args:
            left: (M,) ids, -1 for none.
            right: (M,) ids, -1 for none.

        Returns:
            (M,) ids.
        """
        found = np.full(len(left), int(self.counts.argmax()))
        for place, (before, after) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
            if before < 0 and after < 0:
                continue
            score = self.shares if before < 0 else self._after.row(before) + _SMOOTHING * self.shares  # p(w | l)
            if after >= 0:
                into = self._before.row(after) + _SMOOTHING * self.shares[after]
                score = score * into / (self.counts + _SMOOTHING)  # p(r | w), eq. (2)
            found[place] = int(score.argmax())  # eq. (1)
        return found


class _Counts:
    """A sparse matrix of counts from codes row * V + column."""

    def __init__(self, codes: np.ndarray, vocab_size: int) -> None:
        unique, self._values = np.unique(codes, return_counts=True)
        self._columns = unique % vocab_size
        self._starts = np.searchsorted(unique, np.arange(vocab_size + 1) * vocab_size)

    def row(self, number: int) -> np.ndarray:
        """A row (V,), dense."""
        dense = np.zeros(len(self._starts) - 1)
        part = slice(self._starts[number], self._starts[number + 1])
        dense[self._columns[part]] = self._values[part]
        return dense


def baselines(spec: PretrainSpec, corpora: Mapping[str, TokenCorpus], tokenizer: Tokenizer) -> dict[str, float]:
    """Accuracies without a model on what `evaluate` asks.

    Args:
        spec: of the run.
        corpora: "train" to count in, "dev" to guess in.
        tokenizer: of the run.

    Returns:
        {"unigram", "bigram"}.
    """
    ids, begins = evaluation_rows(corpora["dev"], tokenizer, spec)
    seen, asked, answers = hide(ids, begins, spec, tokenizer, 0)
    target = answers[asked].numpy()
    counts = NeighbourCounts(corpora["train"], tokenizer.vocab_size)
    guesses = counts.guess(*_neighbours(seen, asked, special_ids(tokenizer), spec.kind))
    most = int(counts.counts.argmax())
    return {"unigram": float((target == most).mean()), "bigram": float((guesses == target).mean())}


def _neighbours(seen: Tensor, asked: Tensor, special: Tensor, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(M,) ids left and right of the places asked for, -1 where they say nothing."""
    here = asked.numpy()
    if kind == "lm":  # asked at the token before
        known = np.where(np.isin(seen.numpy(), special.numpy()), -1, seen.numpy())
        return known[here], np.full(int(here.sum()), -1)
    known = np.where(here | np.isin(seen.numpy(), special.numpy()), -1, seen.numpy())
    nothing = np.full((len(known), 1), -1)
    left, right = np.concatenate([nothing, known[:, :-1]], 1), np.concatenate([known[:, 1:], nothing], 1)
    return left[here], right[here]


def measured(
    spec: PretrainSpec, model: Transformer, corpora: Mapping[str, TokenCorpus], tokenizer: Tokenizer, engine: Any,
    result: FitResult,
) -> dict[str, Any]:  # fmt: skip
    """metrics.json of a finished run.

    Args:
        spec: of the run.
        model: trained.
        corpora: "train" and maybe "dev".
        tokenizer: of the run.
        engine: device and precision.
        result: steps, seconds and log.

    Returns:
        Plain values; with a "dev" corpus also the scores on it: of the model, of its weights rounded as they may be
        stored, of the same model untrained, and of `baselines`.
    """
    losses = [entry for entry in result.log if "loss" in entry]
    metrics: dict[str, Any] = {
        "kind": "pretrain", "objective": spec.kind, "spec": json.loads(json.dumps(asdict(spec))), "steps": result.steps,
        "tokens": losses[-1]["tokens"] if losses else 0, "seconds": round(result.seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()), "loss": losses[-1]["loss"] if losses else None,
        "corpus": {role: {k: v for k, v in c.header.items() if k != "format_version"} for role, c in corpora.items()},
        "segmenter": _segmenter(spec.segmenter),
    }  # fmt: skip
    if "dev" not in corpora:
        return metrics
    dev = corpora["dev"]
    metrics["held_out"] = evaluate(model, dev, tokenizer, spec, engine)
    metrics["baselines"] = baselines(spec, corpora, tokenizer)
    fresh = fresh_model(spec, tokenizer.vocab_size).to(engine.device)
    metrics["baselines"]["untrained"] = evaluate(fresh, dev, tokenizer, spec, engine)["accuracy"]
    metrics["stored"] = {"fp32": evaluate(model, dev, tokenizer, spec, None)["accuracy"]}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        rounded = copy.deepcopy(model).to(dtype).float()
        metrics["stored"][name] = evaluate(rounded, dev, tokenizer, spec, None)["accuracy"]
    return metrics


def _segmenter(folder: str | None) -> dict[str, Any] | None:
    """Command and scores of the model that told where words begin."""
    if folder is None or not (Path(folder) / "metrics.json").is_file():
        return None
    record = read_json(Path(folder) / "metrics.json")
    scores = {part: {k: v for k, v in values.items() if k in ("f1", "precision", "recall")}
              for part, values in record.get("metrics", {}).items() if isinstance(values, dict)}  # fmt: skip
    return {"command": record.get("command"), "metrics": scores}
