r"""What the weights of a HuggingFace folder say against its config.json: names, projections, tables of sines.

    bert.embeddings... under model_type roberta                     another family's names                       (1)
    embedding_hidden_mapping_in, embedding_size = hidden_size       a projection that our ALBERT has not         (2)
    encoder.embed_positions.weight                                  sin(n w_k), then cos(n w_k), or refused      (3)

By shapes alone such folders load without a word and compute something else.

Source: the modules of transformers 5.23; Su, kexue.fm/archives/8265, for (3).
Shapes: N positions, D features of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from danlu.data.errors import InputError
from danlu.nn.positions import sinusoidal_positions
from danlu.text._hf_files import Weights
from danlu.text.config import TransformerConfig

__all__ = ["check_names", "check_projection", "check_sines", "sines_then_cosines"]

_OWNERS = {  # beginning of a name -> the families that have it; a model_type not told here is its own family
    "bert.": ("bert", "nezha", "danlu"), "roberta.": ("roberta",), "albert.": ("albert",), "electra.": ("electra",),
    "roformer.": ("roformer",), "nezha.": ("nezha",), "transformer.": ("gpt",),
    "cls.": ("bert", "roformer", "nezha", "danlu"), "lm_head.": ("roberta", "gpt", "t5", "danlu"),
    "predictions.": ("albert",), "sop_classifier.": ("albert",), "generator_predictions.": ("electra",),
    "generator_lm_head.": ("electra",), "discriminator_predictions.": ("electra", "danlu"),
}  # fmt: skip
_FAMILY = {
    "xlm-roberta": "roberta", "camembert": "roberta", "openai-gpt": "gpt", "gpt2": "gpt", "mt5": "t5",
}  # fmt: skip
_ROUNDING = 1e-4  # of a table in float32, made by whatever library


def check_names(folder: str, model_type: str, names: Iterable[str]) -> None:
    """Refuse eq. (1): names that only another family's classes write.

    Args:
        folder: for messages.
        model_type: what they are read as, a name of config.json's.
        names: of all weights, as stored.

    Raises:
        InputError: such a name is there.

    >>> check_names("m", "roberta", ["roberta.pooler.dense.bias", "classifier.dense.bias"])
    """
    own = "danlu" if model_type.startswith("danlu-") else _FAMILY.get(model_type, model_type)
    for name in sorted(names):
        for start, owners in _OWNERS.items():
            if name.removeprefix("module.").startswith(start) and own not in owners:
                theirs = [owner for owner in owners if owner != "danlu"]
                raise InputError(
                    f"{folder} is read as model_type {model_type}, but {name} is a name of {' or '.join(theirs)}; "
                    "get the config.json that belongs to these weights"
                )


def check_projection(folder: str, config: TransformerConfig, model_type: str, names: Mapping[str, str]) -> None:
    """Refuse eq. (2).

    Args:
        folder: for messages.
        config: that the folder's config.json describes.
        model_type: whose names the weights have.
        names: bare name to the name in the file.

    Raises:
        InputError: an ALBERT with a projection between equal sizes.
    """
    name = names.get("encoder.embedding_hidden_mapping_in.weight")
    if model_type == "albert" and config.embedding_dim == config.hidden_size and name is not None:
        raise InputError(
            f"{folder} cannot be read: its embedding_size equals its hidden_size ({config.hidden_size}), and "
            f"transformers still projects one to the other ({name}), which our ALBERT does only between different "
            "sizes; HFEncoder opens the folder through transformers"
        )


def check_sines(folder: str, config: TransformerConfig, weights: Weights, names: Mapping[str, str]) -> None:
    """Refuse a stored table of rotary positions that is not eq. (3), since ours are computed.

    Args:
        folder: for messages.
        config: that the folder's config.json describes.
        weights: of the folder.
        names: bare name to the name in the file.

    Raises:
        InputError: the table differs by more than the rounding of its type.
    """
    name = names.get("encoder.embed_positions.weight")
    if name is None or config.traits.positions != "rotary":
        return
    stored = weights.read(name)
    if stored.ndim != 2 or stored.shape[1] != config.key_dim or not stored.is_floating_point():
        told = f"has shape {tuple(stored.shape)} and {stored.dtype}, sines of (positions, {config.key_dim}) are meant"
    else:
        sines = sines_then_cosines(len(stored), config.key_dim)
        gap = (stored.double() - sines.double()).abs().max().item() if stored.numel() else 0.0
        if gap <= max(_ROUNDING, torch.finfo(stored.dtype).eps):  # false for NaN
            return
        told = f"differs from the sines and cosines of rotary positions by up to {gap:.2g}"
    raise InputError(
        f"{folder}: {name} {told}; positions are computed here, not read, so the model would be another one. "
        "HFEncoder opens the folder through transformers, or take the table out of the file if it is wrong"
    )


def sines_then_cosines(positions: int, size: int) -> Tensor:
    """The table that transformers' RoFormer keeps.

    Args:
        positions: N.
        size: D.

    Returns:
        (N, D), the sines in the first half of each row, the cosines in the second.

    >>> sines_then_cosines(1, 4)
    tensor([[0., 0., 1., 1.]])
    """
    table = sinusoidal_positions(torch.arange(positions), size)  # (N, D), interleaved
    return torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)  # eq. (3)
