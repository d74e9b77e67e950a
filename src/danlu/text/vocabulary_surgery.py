r"""Surgery on the weights of a transformer before it is trained on: another vocabulary, another width.

    pruned      E' = E[keep_tokens]                                                                        (1)
    compound    E'' = [E'; e_1; e_2; ...],  e_i = sum_j w_ij E'[t_ij] / sum_j w_ij                         (2)
    resized     W' = ||W|| R / ||R||,  R: the window of `window` rows and columns of W repeated, then cropped    (3)
    scaled      query, key      W' (m'/m)^(1/4)        m, m': old and new number of their outputs          (4)
                feed-forward    W' (m'/m)^(1/2) of the activated branch, W' (n/n')^(1/2) of the others     (5)

E is the token table; the output bias and an output matrix of its own go the same way. A vocabulary without the tokens
that a tokenizer cannot produce (`simplify_vocab`) needs the fewer rows of (1); words put together from characters get
their first vectors by (2), whose ids count in the table after (1). By (3) to (5) a wider model starts from a narrower
one: repeated neurons carry the same numbers, (3) keeps the norm, and (4), (5) make up for the larger sums. m and n are
outputs and inputs of a matrix; of a bias both are its length. ReLU passes scales through, so a layer with it has the
second form of (5) everywhere. bert4keras turns a bias of zeros into nan by (3); here it stays zero.

Source: Su, bert4keras 0.11.5 (keep_tokens, compound_tokens, autoresize_weights); kexue.fm/archives/7758 (words from
characters).
Shapes: V rows of the vocabulary; other tensors any, linear weights (out, in), named as in `danlu.text.transformer`.
"""

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from danlu.math.precision import wide_dtype
from danlu.text.config import TransformerConfig

__all__ = [
    "VOCABULARY_NAMES",
    "autoresize",
    "compound",
    "orthogonally_resize",
    "prune",
    "resize_vocabulary",
    "resized_config",
]

VOCABULARY_NAMES = ("embeddings.token.weight", "mlm.bias", "lm_head.weight")  # tensors with a row for every token
Compound = Sequence[int] | tuple[Sequence[int], Sequence[float]]


def prune(state: Mapping[str, Tensor], keep_tokens: Sequence[int]) -> dict[str, Tensor]:
    """The weights with only some rows of the vocabulary, eq. (1).

    Args:
        state: weights by name; those of `VOCABULARY_NAMES` are cut, the others handed on.
        keep_tokens: old id of every new row, each once, in the new order.

    Returns:
        A new dictionary; the input keeps its tensors.

    Raises:
        ValueError: an id is outside the table or repeated, none is given, or no tensor is a vocabulary's.

    >>> prune({"mlm.bias": torch.tensor([0.0, 1.0, 2.0])}, [0, 2])["mlm.bias"]
    tensor([0., 2.])
    """
    rows = _rows_of(state, "keep_tokens")
    keep = _checked_keep(keep_tokens, rows)
    order = torch.tensor(keep)
    return {
        name: tensor.detach().index_select(0, order.to(tensor.device)) if name in VOCABULARY_NAMES else tensor
        for name, tensor in state.items()
    }  # eq. (1)


def compound(state: Mapping[str, Tensor], compound_tokens: Sequence[Compound]) -> dict[str, Tensor]:
    """The weights with further rows, each a weighted mean of rows that are there, eq. (2).

    Args:
        state: weights by name, after `prune` if there is both.
        compound_tokens: for every new token the ids it is made of, or (ids, weights).

    Returns:
        A new dictionary; the new rows stand behind the old ones in the order given, in the tensor's dtype.

    Raises:
        ValueError: no tensor is a vocabulary's; a new token has no ids, ids outside the table, or weights that do not
            fit or add up to nothing.

    >>> compound({"mlm.bias": torch.tensor([0.0, 4.0])}, [[0, 1], ([0, 1], [1, 3])])["mlm.bias"]
    tensor([0., 4., 2., 3.])
    """
    rows = _rows_of(state, "compound_tokens")
    parts = [_checked_compound(item, number, rows) for number, item in enumerate(compound_tokens)]
    result = dict(state)
    for name in VOCABULARY_NAMES:
        if name in state and parts:
            old = state[name].detach()
            new = [_mean(old, ids, weights) for ids, weights in parts]
            result[name] = torch.cat([old, torch.stack(new)])  # eq. (2)
    return result


def orthogonally_resize(tensor: Tensor, shape: Sequence[int], window: int = 2) -> Tensor:
    """A tensor of another shape with the same Frobenius norm, eq. (3).

    Args:
        tensor: any number of axes.
        shape: the wanted size of every axis; a smaller one crops, a larger one repeats windows and crops.
        window: how many neighbours are repeated together; it divides every axis that grows.

    Returns:
        New tensor of the input's dtype; zeros stay zeros.

    Raises:
        ValueError: another number of axes, a size below 1, or an axis that the window does not divide.

    >>> orthogonally_resize(torch.tensor([3.0, 4.0]), [4])
    tensor([2.1213, 2.8284, 2.1213, 2.8284])
    """
    shape = tuple(shape)
    if len(shape) != tensor.ndim or min(shape, default=1) < 1:
        raise ValueError(
            f"cannot resize {tuple(tensor.shape)} to {shape}: as many axes are needed, each of at least 1 element"
        )
    exact = tensor.detach().to(wide_dtype(tensor))
    resized = exact
    for axis, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        if new > old:
            if window < 1 or not old or old % window:
                raise ValueError(
                    f"cannot widen {tuple(tensor.shape)} to {shape}: axis {axis} of {old} elements is not made of "
                    f"windows of {window}; give a window that divides it"
                )
            copies = -(-new // old)
            windows = resized.unflatten(axis, (old // window, window)).repeat_interleave(copies, dim=axis)
            resized = windows.flatten(axis, axis + 1)
        resized = resized.narrow(axis, 0, new)
    length = resized.norm()
    if length > 0:
        resized = resized / length * exact.norm()  # eq. (3)
    return resized.to(tensor.dtype, copy=True)


def autoresize(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], config: TransformerConfig
) -> dict[str, Tensor]:
    """The weights brought to the shapes of a model of another width, eqs. (3) to (5).

    Args:
        state: weights by name, at least one; tensors are treated one by one, so a part of a model may be given.
        shapes: wanted shape by name; what has it already, or is not named, is handed on.
        config: of the model to be filled; its family and activation decide which scale applies.

    Returns:
        A new dictionary.

    Raises:
        ValueError: a tensor cannot be brought to its shape (`orthogonally_resize`), or it is the joined matrix of a
            gated attention unit, whose parts must not run into one another.

    >>> sizes = {"vocab_size": 9, "hidden_size": 2, "num_layers": 1, "num_heads": 1, "intermediate_size": 4}
    >>> name = "layers.0.feed_forward.input.bias"
    >>> resized = autoresize({name: torch.tensor([3.0, 4.0])}, {name: (4,)}, TransformerConfig.of("bert", **sizes))
    >>> resized[name].round()  # half the squared norm each, times 4/2
    tensor([3., 4., 3., 4.])
    """
    result = dict(state)
    for name, tensor in state.items():
        shape = tuple(shapes.get(name, tensor.shape))
        if shape == tuple(tensor.shape):
            continue
        if name.endswith("gau.input.weight"):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} joins three matrices and cannot be resized to {shape}; open a "
                "gau_alpha checkpoint with its own sizes"
            )
        try:
            resized = orthogonally_resize(tensor, shape)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        result[name] = (resized * _scale(name, tuple(tensor.shape), shape, config)).to(tensor.dtype)
    return result


def resized_config(
    config: TransformerConfig,
    keep_tokens: Sequence[int] | None = None,
    compound_tokens: Sequence[Compound] | None = None,
) -> TransformerConfig:
    """The configuration after `prune` and `compound`: rows of the vocabulary, and where the padding token went.

    Args:
        config: before.
        keep_tokens: as in `prune`; None: all.
        compound_tokens: as in `compound`; None: none.

    Returns:
        The configuration after.

    Raises:
        ValueError: keep_tokens leaves the padding token out, or its ids are not those of the vocabulary.

    >>> sizes = {"vocab_size": 9, "hidden_size": 2, "num_layers": 1, "num_heads": 1, "intermediate_size": 4}
    >>> after = resized_config(TransformerConfig.of("bert", **sizes), [5, 0, 7], [[0, 2]])
    >>> after.vocab_size, after.pad_token_id
    (4, 1)
    """
    rows, pad = config.vocab_size, config.pad_token_id
    if keep_tokens is not None:
        keep = _checked_keep(keep_tokens, rows)
        if pad is not None and pad not in keep:
            raise ValueError(
                f"keep_tokens leaves out the padding token {pad}; put it first, or open the model with "
                "pad_token_id=None and give masks"
            )
        rows, pad = len(keep), None if pad is None else keep.index(pad)
    return config.replace(vocab_size=rows + len(compound_tokens or ()), pad_token_id=pad)


def resize_vocabulary(
    model: nn.Module,
    keep_tokens: Sequence[int] | None = None,
    compound_tokens: Sequence[Compound] | None = None,
) -> None:
    """Change the vocabulary of a built model in place; `model.config` follows.

    The tables become new parameters, so an optimizer must be made afterwards.

    Args:
        model: what `build_transformer` or a loader returned.
        keep_tokens: old ids of the rows to keep, eq. (1); None: all.
        compound_tokens: rows to add, eq. (2), whose ids count after keep_tokens; None: none.

    Raises:
        ValueError: as `prune`, `compound` and `resized_config`; the model is unchanged then.
    """
    config: Any = resized_config(model.config, keep_tokens, compound_tokens)  # type: ignore[arg-type]
    owners = dict(model.named_parameters())
    state = {name: owners[name] for name in VOCABULARY_NAMES if name in owners}
    changed: dict[str, Tensor] = dict(state)
    if keep_tokens is not None:
        changed = prune(changed, keep_tokens)
    if compound_tokens is not None:
        changed = compound(changed, compound_tokens)
    for name, tensor in changed.items():
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        setattr(owner, last, nn.Parameter(tensor, requires_grad=state[name].requires_grad))
        if isinstance(owner, nn.Embedding):
            owner.num_embeddings = len(tensor)
        elif isinstance(owner, nn.Linear):
            owner.out_features = len(tensor)
    old = model.config
    for module in model.modules():  # an encoder-decoder's stacks hold the same record
        if getattr(module, "config", None) is old:
            module.config = config


def _rows_of(state: Mapping[str, Tensor], option: str) -> int:
    rows = {name: len(state[name]) for name in VOCABULARY_NAMES if name in state}
    if not rows:
        raise ValueError(
            f"{option} changes {', '.join(VOCABULARY_NAMES)}, of which the weights have none; bring them to these "
            "names first, or give the weights that have them"
        )
    if len(set(rows.values())) > 1:
        raise ValueError(
            f"the tables disagree about the size of the vocabulary: {', '.join(f'{n} {r}' for n, r in rows.items())}"
        )
    return next(iter(rows.values()))


def _checked_keep(keep_tokens: Sequence[int], rows: int) -> list[int]:
    keep = [index(token) for token in keep_tokens]
    if not keep:
        raise ValueError("keep_tokens is empty; give the old id of every row to keep, or None for all")
    bad = next((token for token in keep if not 0 <= token < rows), None)
    if bad is not None:
        raise ValueError(
            f"keep_tokens holds {bad}, the vocabulary has ids 0 to {rows - 1}; take it from the same vocab.txt"
        )
    if len(set(keep)) < len(keep):
        seen: set[int] = set()
        twice = next(token for token in keep if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise ValueError(f"keep_tokens holds {twice} twice; every old row can be kept once")
    return keep


def _checked_compound(item: Compound, number: int, rows: int) -> tuple[list[int], list[float]]:
    """Ids and weights of one new token."""
    pair = isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, Sequence) for part in item)
    ids = [index(token) for token in (item[0] if pair else item)]  # type: ignore[union-attr, arg-type]
    weights = [float(weight) for weight in item[1]] if pair else [1.0] * len(ids)  # type: ignore[union-attr]
    where = f"compound_tokens[{number}]"
    if not ids or len(weights) != len(ids):
        raise ValueError(f"{where} has {len(ids)} ids and {len(weights)} weights; give ids, or (ids, as many weights)")
    bad = next((token for token in ids if not 0 <= token < rows), None)
    if bad is not None:
        raise ValueError(
            f"{where} names row {bad}, the table has rows 0 to {rows - 1}; ids count in the table after keep_tokens"
        )
    if sum(weights) == 0 or not all(abs(weight) < float("inf") for weight in weights):
        raise ValueError(f"{where} has the weights {weights}; they must be finite and not add up to 0")
    return ids, weights


def _mean(table: Tensor, ids: list[int], weights: list[float]) -> Tensor:
    rows = table[ids].double()  # (n, ...), double so that a mean of many rows rounds once
    weight = torch.tensor(weights, dtype=torch.float64, device=table.device)
    return (torch.tensordot(weight, rows, dims=1) / weight.sum()).to(table.dtype)


def _scale(name: str, old: tuple[int, ...], new: tuple[int, ...], config: TransformerConfig) -> float:
    """The factor of eqs. (4) and (5); 1 for what is neither attention nor feed-forward."""
    parts = name.split(".")
    layer, branch = parts[-3] if len(parts) > 2 else "", parts[-2] if len(parts) > 1 else ""
    if layer == "attention" and branch in ("query", "key") and config.traits.scaled_scores:
        return float((new[0] / old[0]) ** 0.25)  # eq. (4)
    if layer == "feed_forward":
        activated = "gate" if config.traits.gated else "input"
        if branch == activated and config.activation not in ("relu", "leaky_relu"):
            return float((new[0] / old[0]) ** 0.5)  # eq. (5)
        return float((old[-1] / new[-1]) ** 0.5)  # eq. (5)
    return 1.0
