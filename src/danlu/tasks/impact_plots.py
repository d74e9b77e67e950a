"""Pictures of perturbed masking for `danlu plot`: impacts, trees and cuts of one text."""

from typing import Any

import torch

from danlu.data.errors import InputError
from danlu.gallery import figures
from danlu.tasks.plot_request import LONGEST, Request, one_text, open_model, titled

__all__ = ["draw_boundaries", "draw_dependencies", "draw_impact", "draw_tree"]


def impacts_of(request: Request) -> tuple[Any, tuple[str, ...], bool]:
    """Impact matrix (W, W) and words of one text, and whether its blanks parted the words."""
    from danlu.probe import impact_matrix, text_pieces, word_pieces

    encoder, text = open_model(request), one_text(request)
    mask_id = getattr(encoder.tokenizer, "mask_id", None)
    if mask_id is None:
        raise InputError(f"{request.source} has no [MASK]; perturbed masking needs a masked language model")
    words = text.split()
    spaced = len(words) > 1
    pieces = word_pieces(encoder.tokenizer, words) if spaced else text_pieces(encoder.tokenizer, text)
    if len(pieces.units) < 2:
        raise InputError("the text has fewer than two words; give a sentence, words parted by blanks or a running text")
    room = encoder.room(LONGEST)
    if len(pieces.ids) > room:
        raise InputError(f"the text has {len(pieces.ids)} tokens, this model reads {room}; give a shorter one")
    with torch.no_grad():
        return impact_matrix(encoder.transformer, [pieces], mask_id)[0], pieces.texts, spaced


def draw_impact(request: Request) -> Any:
    """Impacts with the tree they give: dependencies too where blanks part the words, cuts where nothing does."""
    from danlu.probe import ImpactMatrix, cut_threshold, impact_heads, neighbour_scores

    values, words, spaced = impacts_of(request)
    tree = ImpactMatrix(values, words).tree()
    if spaced:
        heads = impact_heads(values, "mass")
        return figures.plot_impact(values, words, heads=heads, tree=tree, title=titled(request), **request.look)
    scores = neighbour_scores(values)
    threshold = cut_threshold([scores])
    cuts = [i + 1 for i, score in enumerate(scores.tolist()) if score < threshold]
    return figures.plot_impact(values, words, cuts=cuts, tree=tree, title=titled(request), **request.look)


def draw_dependencies(request: Request) -> Any:
    """The dependency tree alone."""
    from danlu.probe import impact_heads

    values, words, _ = impacts_of(request)
    title = titled(request, "heads by impact")
    return figures.plot_dependencies(words, impact_heads(values, "mass"), title=title, **request.look)


def draw_tree(request: Request) -> Any:
    """The constituency tree alone."""
    from danlu.probe import ImpactMatrix

    values, words, _ = impacts_of(request)
    title = titled(request, "constituents by impact")
    return figures.plot_constituents(ImpactMatrix(values, words).tree(), title=title, **request.look)


def draw_boundaries(request: Request) -> Any:
    """Scores of the gaps of a text, and where they cut it."""
    from danlu.probe import cut_threshold, cut_words, neighbour_scores

    values, words, _ = impacts_of(request)
    scores = neighbour_scores(values)
    threshold = cut_threshold([scores])
    title = titled(request, " ".join(cut_words(words, scores, threshold)))
    return figures.plot_boundaries(words, scores, threshold=threshold, title=title, **request.look)
