"""What a masked language model says at hidden positions, whoever made it: the calls that `impact_matrix` makes."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from danlu.math.precision import wide

__all__ = ["States", "evaluating", "parameter_names", "states_reader"]

States = Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]


def states_reader(model: Callable[..., Any], layers: Sequence[int] | None, probabilities: bool) -> States:
    """A function (ids, mask, hidden, truth) -> one (R, T, D) tensor a layer, in whatever way the model is called.

    Args:
        model: a module or callable; see `danlu.probe.perturbed_masking`.
        layers: numbers of hidden states, 0 before the first layer, -1 after the last; None: what the model returns.
        probabilities: return probabilities (R, T, 1) of the true tokens at hidden positions instead.

    Returns:
        The function; its tensors are as the model made them, probabilities in float32 or better.
    """
    names = parameter_names(model)

    def call(ids: Tensor, mask: Tensor, hidden: Tensor) -> Any:
        options: dict[str, Any] = {}
        if "logits_at" in names:  # scores of the vocabulary cost as much as the layers: only where they are read
            options["logits_at"] = hidden if probabilities else torch.zeros_like(hidden)
        if layers is not None and "output_layers" in names:
            options["output_layers"] = True
        if "attention_mask" in names:
            if layers is not None:
                options["output_hidden_states"] = True
            return model(input_ids=ids, attention_mask=mask.long(), **options)
        return model(ids, mask=mask, **options) if "mask" in names else model(ids, mask)

    def read(ids: Tensor, mask: Tensor, hidden: Tensor, truth: Tensor) -> list[Tensor]:
        out = call(ids, mask, hidden)
        if probabilities:
            return [_probabilities(out, hidden, truth)]
        states = _hidden_states(out, layers)
        for state in states:
            if state.ndim != 3 or state.shape[:2] != ids.shape:
                raise ValueError(
                    f"the model must return hidden states (B, T, D) for ids {tuple(ids.shape)}; got "
                    f"{tuple(state.shape)}. Wrap it: lambda ids, mask: model(...).hidden_states"
                )
        return states

    return read


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside the block every part of a module is in evaluation mode and no graph is kept; then each is as it was."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def parameter_names(model: Callable[..., Any]) -> set[str]:
    """Names of the arguments that a module's forward, or a function, takes."""
    inner: Any = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    try:
        return set(inspect.signature(inner.forward if isinstance(inner, nn.Module) else inner).parameters)
    except (TypeError, ValueError):  # a builtin
        return set()


def _hidden_states(out: Any, layers: Sequence[int] | None) -> list[Tensor]:
    """The tensors of one call, by layer."""
    if isinstance(out, Tensor):
        states: Any = out
    elif layers is not None and getattr(out, "layers", None) is not None:
        states = out.layers
    else:
        states = getattr(out, "hidden_states", None)
        last = getattr(out, "last_hidden_state", None)
        if layers is None and last is not None:
            states = last
        elif states is None and isinstance(out, tuple | list):
            states = out
    if isinstance(states, Tensor):
        if layers is not None:
            raise ValueError(
                f"layers={list(layers)} was asked for, but the model returns one tensor {tuple(states.shape)}; leave "
                "layers out, or return a list of hidden states, one a layer"
            )
        return [states]
    if not isinstance(states, tuple | list) or not states or not all(isinstance(s, Tensor) for s in states):
        raise ValueError(
            f"the model returned {type(out).__name__} without hidden states (B, T, D); load it without its head "
            "(AutoModel), ask for layers=[-1], or wrap it in a function of (ids, mask) that returns them"
        )
    if layers is None:
        return list(states)
    if any(not -len(states) <= layer < len(states) for layer in layers):
        raise ValueError(f"layers must lie in [{-len(states)}, {len(states) - 1}], got {list(layers)}")
    return [states[layer] for layer in layers]


def _probabilities(out: Any, hidden: Tensor, truth: Tensor) -> Tensor:
    """(R, T, 1) probability of the true token at hidden positions, 0 elsewhere."""
    logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(logits, Tensor) or (logits.ndim == 3 and logits.shape[:2] != hidden.shape):
        found = type(out).__name__ if logits is None else tuple(logits.shape)
        raise ValueError(
            f"distance='prob' needs logits (B, T, V) of a masked-language-model head, got {found}; load the model with "
            "its head, or use distance='euclid', which needs hidden states only"
        )
    if logits.ndim == 3:
        logits = logits[hidden]  # (M, V)
    at = wide(logits).softmax(-1).gather(1, truth[hidden][:, None])[:, 0]  # (M,)
    return at.new_zeros(hidden.shape).masked_scatter(hidden, at)[:, :, None]
