"""Pictures of attention for `danlu plot`: maps of heads, and the factors that Nystrom attention would make of them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu.data.errors import InputError
from danlu.gallery import figures
from danlu.tasks.plot_request import Request, model_ids, one_text, open_model, titled

__all__ = ["draw_arcs", "draw_attention", "draw_factors", "draw_heads", "draw_profile"]


def maps_of(request: Request) -> tuple[Any, Any]:
    """Attention maps of one text: weights (L, H, T, T) and tokens."""
    from danlu.probe import attention_maps

    encoder = open_model(request)
    with torch.no_grad():
        found = attention_maps(encoder.transformer, model_ids(encoder, one_text(request)), tokenizer=encoder.tokenizer)
    for name, asked, size in (("--layer", request.layer, found.weights.shape[0]),
                              ("--head", request.head, found.weights.shape[2])):  # fmt: skip
        if asked is not None and not 1 <= asked <= size:
            raise InputError(f"{name} must be in [1, {size}] for this model, got {asked}")
    return found, found.tokens[0]


def chosen(request: Request, weights: Tensor) -> tuple[Tensor, str]:
    """(T, T): the layer (the last unless asked) and head, or the mean of its heads, and how that is said."""
    layer = request.layer or len(weights)
    if request.head is None:
        return weights[layer - 1].mean(0), f"layer {layer}, mean of {weights.shape[1]} heads"
    return weights[layer - 1, request.head - 1], f"layer {layer}, head {request.head}"


def draw_attention(request: Request) -> Any:
    """One head, or the mean of a layer."""
    found, tokens = maps_of(request)
    weights, told = chosen(request, found.weights[:, 0])
    return figures.plot_heat_map(weights, tokens, tokens, title=titled(request, told), **request.look)


def draw_arcs(request: Request) -> Any:
    """The same as lines between two columns."""
    found, tokens = maps_of(request)
    weights, told = chosen(request, found.weights[:, 0])
    return figures.plot_attention_arcs(weights, tokens, title=titled(request, told), **request.look)


def draw_heads(request: Request) -> Any:
    """All heads, or those of a layer."""
    found, _ = maps_of(request)
    weights = found.weights[:, 0]
    layers = None
    if request.layer is not None:
        weights, layers = weights[request.layer - 1 : request.layer], [str(request.layer)]
    return figures.plot_head_grid(weights, layers, title=titled(request, "all heads"), **request.look)


def draw_profile(request: Request) -> Any:
    """Entropy and distance of all heads."""
    found, tokens = maps_of(request)
    return figures.plot_head_profile(
        found.entropy, found.distance, uniform=float(np.log(len(tokens))), title=titled(request), **request.look
    )


def draw_factors(request: Request) -> Any:
    """What Nystrom attention would make of a head."""
    from danlu.nn import nystrom_factors
    from danlu.probe import attention_inputs

    encoder = open_model(request)
    ids = model_ids(encoder, one_text(request))
    with torch.no_grad():
        inputs = list(attention_inputs(encoder.transformer, ids, mask=torch.ones_like(ids, dtype=torch.bool)).values())
        layer, head = request.layer or len(inputs), request.head or 1
        heads = inputs[0].query.shape[1]
        if not 1 <= layer <= len(inputs) or not 1 <= head <= heads:
            raise InputError(f"--layer must be in [1, {len(inputs)}] and --head in [1, {heads}], got {layer}, {head}")
        found = inputs[layer - 1]
        if found.query.shape[2] <= request.landmarks:
            raise InputError(
                f"the text has {found.query.shape[2]} tokens, no more than {request.landmarks} landmarks, and is not "
                "approximated; give a longer one or fewer --landmarks"
            )
        parts = nystrom_factors(found.query, found.key, request.landmarks, mask=found.mask, scale=found.scale)
    title = titled(request, f"layer {layer}, head {head}, {request.landmarks} landmarks")
    return figures.plot_nystrom_factors(*(part[0, head - 1] for part in parts), title=title, **request.look)
