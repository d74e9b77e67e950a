r"""bert4keras' decoder for scripts that have one: a `predict` of the user's in NumPy, results as bert4keras gives them.

    s(y_1..y_n) = sum_t log(p(y_t | y_<t) + 1e-12),      p^(1/T) renormalised, or softmax(logits / T)         (1)

What it does otherwise than `danlu.text.beam_search` and `danlu.text.sample`, kept so that old results come back:
- dropped beams: a beam that has ended while another leads is thrown away with its place and never compared again, so
  that a worse answer can be returned;
- start counts: the start token is part of the answer, of `minlen`, and of the ends counted where it is the end token;
- writing past the end: a beam that ends before `minlen` tokens goes on behind its end token;
- states in place: what `predict` returns as states is handed back as it is, not reordered with the beams;
- one input at a time, and another pass over all of it for each token.

Better than there: a `topk` beyond the vocabulary takes all of it (an error of NumPy there), `predict` may return
tensors and keeps its arrays, and random numbers come from `rng`, not from NumPy's global state.

Source: bert4keras 0.11.5, snippets.py (Su, Apache-2.0); kexue.fm/archives/7292.
Shapes: R rows, V vocabulary, n tokens so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["AutoRegressiveDecoder"]


class AutoRegressiveDecoder:
    """A decoder whose subclass defines `predict(self, inputs, output_ids, states)` under `wraps`.

    Args:
        start_id: token every answer begins with; None: none.
        end_id: token that ends an answer.
        maxlen: tokens written at most.
        minlen: tokens of an answer, with the start token, below which it does not end.

    >>> class Count(AutoRegressiveDecoder):
    ...     @AutoRegressiveDecoder.wraps(default_rtype="probas")
    ...     def predict(self, inputs, output_ids, states):
    ...         return np.eye(5)[(output_ids[:, -1] + 1) % 5]
    >>> Count(start_id=0, end_id=3, maxlen=9).beam_search([], topk=2).tolist()
    [0, 1, 2, 3]
    """

    def __init__(self, start_id: int | None, end_id: int, maxlen: int, minlen: int = 1) -> None:
        self.start_id, self.end_id = start_id, end_id
        self.maxlen, self.minlen = maxlen, minlen
        start = [] if start_id is None else [start_id]
        self.first_output_ids = np.array([start], dtype=np.int64)

    @staticmethod
    def wraps(
        default_rtype: str = "probas", use_states: bool = False
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that gives `predict` its temperature and its two kinds of result.

        Args:
            default_rtype: what the decorated function returns, "probas" or "logits", of the last position (R, V).
            use_states: it returns (result, states) instead of the result.

        Returns:
            The decorator. What it makes takes also `temperature` and `rtype`: "probas", or "logits", which are
            log(p + 1e-12) of eq. (1).

        Raises:
            ValueError: a kind that is neither.
        """
        _demand_kind("default_rtype", default_rtype)

        def decorate(predict: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(
                self: AutoRegressiveDecoder,
                inputs: Sequence[np.ndarray],
                output_ids: np.ndarray,
                states: Any,
                temperature: float = 1,
                rtype: str = default_rtype,
            ) -> tuple[np.ndarray, Any]:
                _demand_kind("rtype", rtype)
                result = predict(self, inputs, output_ids, states)
                values, states = result if use_states else (result, None)
                values = _array(values)
                if default_rtype == "logits":
                    values = values / temperature
                    values = np.exp(values - values.max(axis=-1, keepdims=True))
                elif temperature != 1:
                    values = np.power(values, 1.0 / temperature)
                if default_rtype == "logits" or temperature != 1:
                    values = values / values.sum(axis=-1, keepdims=True)
                return (values if rtype == "probas" else np.log(values + 1e-12)), states  # eq. (1)

            return wrapped

        return decorate

    def predict(
        self,
        inputs: Sequence[np.ndarray],
        output_ids: np.ndarray,
        states: Any = None,
        temperature: float = 1,
        rtype: str = "probas",
    ) -> tuple[np.ndarray, Any]:
        """The next token's probabilities (R, V) and the states; a subclass defines this.

        Args:
            inputs: what beam_search or random_sample was given, each with a first axis of R rows.
            output_ids: (R, n) tokens so far, the start token included.
            states: what the call before returned; None at first.
            temperature: given by `wraps`.
            rtype: given by `wraps`.

        Returns:
            Values (R, V) and states.

        Raises:
            NotImplementedError: the subclass has no predict.
        """
        raise NotImplementedError(
            f"{type(self).__name__} needs a method predict(self, inputs, output_ids, states) under "
            "@AutoRegressiveDecoder.wraps(...)"
        )

    def beam_search(
        self, inputs: Sequence[Any], topk: int, states: Any = None, temperature: float = 1, min_ends: int = 1
    ) -> np.ndarray:
        """The answer of bert4keras' beam search.

        Args:
            inputs: arrays or lists of one example, without a batch axis.
            topk: beams.
            states: given to the first `predict`.
            temperature: above 1 flattens the probabilities that are compared.
            min_ends: end tokens an answer needs to be complete.

        Returns:
            (n,) int64, the start token and the end token included.

        Raises:
            ValueError: topk is below 1, or `predict` gave nan.
        """
        _demand_positive("topk", topk)
        ids, scores = self.first_output_ids, np.zeros(1)
        for step in range(self.maxlen):
            log_probs, states = self.predict(_repeated(inputs, len(ids)), ids, states, temperature, "logits")
            _demand_numbers(log_probs, step)
            total = scores[:, None] + log_probs  # (R, V)  eq. (1)
            count = min(topk, total.size)
            best = total.argpartition(-count, axis=None)[-count:]
            parent, token = np.divmod(best, total.shape[1])
            ids = np.concatenate([ids[parent], token[:, None]], axis=1)
            scores = total.ravel()[best]
            if ids.shape[1] < self.minlen:
                continue
            complete = self._complete(ids, min_ends)
            if complete[scores.argmax()]:
                break
            ids, scores = ids[~complete], scores[~complete]
            topk -= int(complete.sum())
        return ids[scores.argmax()]

    def random_sample(
        self,
        inputs: Sequence[Any],
        n: int,
        topk: int | None = None,
        topp: float | None = None,
        states: Any = None,
        temperature: float = 1,
        min_ends: int = 1,
        rng: np.random.Generator | np.random.RandomState | None = None,
    ) -> list[np.ndarray]:
        """Answers drawn as bert4keras draws them.

        Args:
            inputs: arrays or lists of one example, without a batch axis.
            n: answers.
            topk: draw from this many most probable tokens; None: from all.
            topp: of those, from the fewest that reach this probability; None: from all.
            states: given to the first `predict`.
            temperature: above 1 flattens the probabilities.
            min_ends: end tokens an answer needs to be complete.
            rng: source of randomness; RandomState(seed) draws what bert4keras draws after np.random.seed(seed).

        Returns:
            n arrays of int64, those that ended first first; the start token and the end token included.

        Raises:
            ValueError: n or topk is below 1, or `predict` gave nan.
        """
        _demand_positive("n", n)
        if topk is not None:
            _demand_positive("topk", topk)
        rng = np.random.default_rng() if rng is None else rng
        ids, answers = self.first_output_ids, []
        for step in range(self.maxlen):
            probability, states = self.predict(_repeated(inputs, len(ids)), ids, states, temperature, "probas")
            _demand_numbers(probability, step)
            probability = probability / probability.sum(axis=1, keepdims=True)
            if step == 0:
                probability, ids = np.repeat(probability, n, axis=0), np.repeat(ids, n, axis=0)
            probability, columns = _filter(probability, topk, topp)
            place = [rng.choice(len(p), p=p) for p in probability]
            token = np.take_along_axis(columns, np.array(place)[:, None], axis=1)
            ids = np.concatenate([ids, token], axis=1)
            if ids.shape[1] < self.minlen:
                continue
            complete = self._complete(ids, min_ends)
            answers += list(ids[complete])
            ids = ids[~complete]
            if not len(ids):
                break
        return answers + list(ids)

    def _complete(self, ids: np.ndarray, min_ends: int) -> np.ndarray:
        ends = ids == self.end_id
        return ends[:, -1] & (ends.sum(axis=1) >= min_ends)


def _filter(probability: np.ndarray, topk: int | None, topp: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (R, m) of the tokens kept, 0 behind the nucleus, and their ids (R, m)."""
    columns = np.broadcast_to(np.arange(probability.shape[1]), probability.shape)
    if topk is not None:
        k = min(topk, probability.shape[1])
        columns = probability.argpartition(-k, axis=1)[:, -k:]
        probability = np.take_along_axis(probability, columns, axis=1)
        probability = probability / probability.sum(axis=1, keepdims=True)
    if topp is not None:
        falling = probability.argsort(axis=1)[:, ::-1]
        columns = np.take_along_axis(columns, falling, axis=1)
        probability = np.take_along_axis(probability, falling, axis=1)
        reached = probability.cumsum(axis=1) >= topp
        reached[:, 1:] = reached[:, :-1].copy()  # the token that reaches it stays
        reached[:, 0] = False
        probability = np.where(reached, 0.0, probability)
        probability = probability / probability.sum(axis=1, keepdims=True)
    return probability, columns


def _repeated(inputs: Sequence[Any], times: int) -> list[np.ndarray]:
    return [np.repeat(np.array([x]), times, axis=0) for x in inputs]


def _array(values: Any) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _demand_kind(name: str, kind: str) -> None:
    if kind not in ("probas", "logits"):
        raise ValueError(f'{name} must be "probas" or "logits"; got {kind!r}')


def _demand_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _demand_numbers(values: np.ndarray, step: int) -> None:
    if np.isnan(values).any():
        raise ValueError(f"predict returned nan at step {step}; look at the model's weights and at its precision")
