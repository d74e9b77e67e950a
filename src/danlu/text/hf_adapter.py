r"""Encoders that danlu does not compute itself, through transformers: BART, DeBERTa, ERNIE, ModernBERT and others.

    hidden_states = encoder(ids, mask)                                                                          (1)

The adapter gives them the call of our own models, so that recipes and tricks take either. Files on this machine only,
no code that comes with a folder, and no weight left to chance: a folder that lacks one (a pooler apart) is refused.

Source: transformers' `AutoModel`.
Shapes: B sequences, T tokens, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.data.errors import InputError

__all__ = ["HFEncoder"]


class HFEncoder(nn.Module):
    """Any encoder of transformers with our call, eq. (1); of an encoder-decoder the encoder.

    Args of the constructor: folder, which holds config.json and weights. Needs the extra `hf`; begins in evaluation
    mode. Source: see the module. Shapes: see the module.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError:
            raise ImportError('HFEncoder needs transformers; install it with pip install "danlu[hf]"') from None
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has no config.json; HFEncoder opens local folders and downloads nothing")
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            described = AutoConfig.from_pretrained(folder, **local)
            model, info = AutoModel.from_pretrained(folder, output_loading_info=True, **local)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            told = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise InputError(f"transformers cannot open {folder}: {told}") from None
        absent = sorted(name for name in info["missing_keys"] if "pooler" not in name)
        if absent:
            raise InputError(
                f"{folder} lacks {len(absent)} weights of its {described.model_type}, {absent[0]} first; transformers "
                "would fill them with random numbers. Get the whole folder"
            )
        whole = model
        self.model = whole.get_encoder() if described.is_encoder_decoder else whole
        self.config = described
        self.pad_token_id: int | None = getattr(described, "pad_token_id", None)
        self.eval()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states, eq. (1).

        Args:
            ids: (B, T) int64 token ids.
            mask: (B, T) bool, True for tokens; None: where ids are not the padding id, all where there is none.

        Returns:
            (B, T, D); at padding without meaning.

        Raises:
            ValueError: ids or mask of another shape, ids beyond the table.
        """
        if ids.ndim != 2 or (mask is not None and mask.shape != ids.shape):
            given = "" if mask is None else f" and {tuple(mask.shape)}"
            raise ValueError(f"ids and mask must be (batch, tokens), got {tuple(ids.shape)}{given}")
        rows = self.get_input_embeddings().weight.shape[0]
        if ids.device.type == "cpu" and ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= rows):
            raise ValueError(
                f"ids reach from {int(ids.min())} to {int(ids.max())}, the table has rows 0 to {rows - 1}; "
                "the tokenizer and the model do not belong together"
            )
        if mask is None:
            mask = torch.ones_like(ids, dtype=torch.bool) if self.pad_token_id is None else ids != self.pad_token_id
        return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # eq. (1)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table, the weight that adversarial training perturbs."""
        return self.model.get_input_embeddings()
