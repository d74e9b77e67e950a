r"""Steps of danlu's own models: each token is computed once, keys and values of those before lie in a cache.

A prompt is read in one pass, whatever its length. Short prompts are padded on the left, so that all rows write in the
same column; padded keys are hidden, and positions count each row's own tokens, so that a row gives what it gives alone.
Rows that beam search repeats share their past (`danlu.nn.kv_cache`); the source of an encoder-decoder is encoded once,
and its keys are moved only when prompts leave the batch.

Source: Vaswani et al., 2017, arXiv:1706.03762; unilm: Dong et al., 2019, arXiv:1905.03197, kexue.fm/archives/6933.
Shapes: R rows, T tokens of the longest prompt, S of the longest source, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.text.encoder_decoder import EncoderDecoder
from danlu.text.single_stack import Transformer
from danlu.text.steps import pad_right

__all__ = ["EncoderDecoderSteps", "TransformerSteps"]

Prompts = Sequence[Sequence[int]] | Tensor


class TransformerSteps:
    """Steps of a model with one stack, built for application "lm" or "unilm".

    Args:
        model: in evaluation mode.
        prompts: token ids of each row, lists or an int64 tensor (R, T); every one of them counts as a token.
        max_new_tokens: how many tokens the decoder may write; room for them is made at once.
        segment_ids: segments of the prompts' tokens, formed like `prompts`; None: zeros, which under "unilm" makes the
            whole prompt the source.
        new_segment: segment of the tokens written; None: 1 under "unilm", else 0.
        condition: (R, C) vectors of a model with condition_size.

    Raises:
        ValueError: the model is an encoder or in training mode, prompts are empty, segments do not fit the prompts;
            later: positions beyond the table, more tokens than there is room for, a first step taken twice.

    >>> from danlu.text.config import TransformerConfig
    >>> sizes = {"vocab_size": 9, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    >>> gpt = Transformer(TransformerConfig.of("gpt2", **sizes)).eval()
    >>> steps = TransformerSteps(gpt, [[1, 2, 3], [4]], max_new_tokens=5)
    >>> steps.step(None).shape, steps.step(torch.tensor([5, 6])).shape
    (torch.Size([2, 9]), torch.Size([2, 9]))
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Prompts,
        max_new_tokens: int,
        segment_ids: Prompts | None = None,
        new_segment: int | None = None,
        condition: Tensor | None = None,
    ) -> None:
        _demand_evaluation(model, Transformer, "TransformerSteps", "EncoderDecoderSteps")
        config, device = model.config, model.get_input_embeddings().weight.device
        right, lengths = pad_right(prompts, config.pad_token_id or 0)
        if not int(lengths.min()):
            raise ValueError("a prompt has no tokens; give at least the one that begins every text")
        shift = (torch.arange(right.shape[1]) - (right.shape[1] - lengths)[:, None]) % right.shape[1]
        self.model, self.condition = model, condition
        self.ids = right.gather(1, shift).to(device)  # (R, T), padded on the left
        keep = (torch.arange(right.shape[1]) >= (right.shape[1] - lengths)[:, None]).to(device)
        ragged = not bool(keep.all())
        self.mask = keep if ragged or config.pad_token_id is not None else None
        self.cache = model.new_cache(len(right), right.shape[1] + max_new_tokens, keep if ragged else None)
        self.positions = None  # (R, T), then (R, 1); None: the model counts, all rows alike
        if ragged and config.traits.positions in ("learned", "rotary"):
            self.positions = (keep.long().cumsum(1) - 1).clamp(min=0)
        self.segments = None  # (R, T), then (R, 1)
        if config.application == "unilm" or (config.traits.segments and config.segment_vocab_size):
            segments, counts = (torch.zeros_like(right), lengths) if segment_ids is None else pad_right(segment_ids, 0)
            if not torch.equal(counts, lengths):
                raise ValueError(
                    f"segment_ids have {counts.tolist()} entries for prompts of {lengths.tolist()} tokens; give one "
                    "a token"
                )
            self.segments = segments.gather(1, shift).to(device)
        elif segment_ids is not None:
            raise ValueError(f"this {config.family} has no segments; leave segment_ids away")
        self.new_segment = int(config.application == "unilm") if new_segment is None else new_segment

    @property
    def rows(self) -> int:
        """Rows alive now."""
        return len(self.ids)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.model.config.vocab_size

    @torch.no_grad()
    def step(self, tokens: Tensor | None) -> Tensor:
        """Logits (R, V) of the next token; `tokens` (R,) were just chosen, None at the first call."""
        if tokens is None:
            _demand_fresh(self.cache.length)
        else:
            self.ids, self.mask = tokens[:, None].to(self.ids), None
            if self.positions is not None:
                self.positions = self.positions[:, -1:] + 1
            if self.segments is not None:
                self.segments = torch.full_like(self.ids, self.new_segment)
        out = self.model(
            self.ids, self.segments, mask=self.mask, position_ids=self.positions, condition=self.condition,
            cache=self.cache, logits_at="last",
        )  # fmt: skip
        assert out.logits is not None
        return out.logits

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from what row `rows[r]` was."""
        rows = rows.to(self.ids.device)
        self.cache.reorder(rows)
        self.ids = self.ids[rows]
        self.positions = None if self.positions is None else self.positions[rows]
        self.condition = None if self.condition is None else self.condition[rows]


class EncoderDecoderSteps:
    """Steps of a T5: the prompts are the sources, the answers begin behind a start token.

    Args:
        model: in evaluation mode.
        sources: token ids of each row, lists or an int64 tensor (R, S); every one of them counts as a token.
        max_new_tokens: how many tokens the decoder may write; room for them is made at once.
        start_id: token that every answer begins with, or several; not among the tokens returned.
        condition: (R, C) vectors of a model with condition_size.

    Raises:
        ValueError: the model is in training mode, sources or the start are empty; later: more tokens than there is
            room for, a first step taken twice.

    >>> from danlu.text.config import TransformerConfig
    >>> sizes = {"vocab_size": 9, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    >>> t5 = EncoderDecoder(TransformerConfig.of("t5.1.1", **sizes)).eval()
    >>> EncoderDecoderSteps(t5, [[1, 2, 3], [4]], max_new_tokens=5).step(None).shape
    torch.Size([2, 9])
    """

    def __init__(
        self,
        model: EncoderDecoder,
        sources: Prompts,
        max_new_tokens: int,
        start_id: int | Sequence[int] = 0,
        condition: Tensor | None = None,
    ) -> None:
        _demand_evaluation(model, EncoderDecoder, "EncoderDecoderSteps", "TransformerSteps")
        device = model.get_input_embeddings().weight.device
        ids, lengths = pad_right(sources, model.config.pad_token_id or 0)
        start = torch.tensor([start_id] if isinstance(start_id, int) else list(start_id), dtype=torch.int64)
        if not int(lengths.min()) or not len(start):
            raise ValueError("a source or the start has no tokens; T5's own start token is its padding, id 0")
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        self.model, self.condition = model, condition
        with torch.no_grad():
            encoded, keep = model.encode(ids.to(device), mask=mask.to(device), condition=condition)
            self.cache = model.new_cache(encoded, keep, len(start) + max_new_tokens)
        self.ids = start.to(device).expand(len(ids), -1)
        self.source = torch.arange(len(ids), device=device)  # which source each row reads

    @property
    def rows(self) -> int:
        """Rows alive now."""
        return len(self.ids)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.model.config.vocab_size

    @torch.no_grad()
    def step(self, tokens: Tensor | None) -> Tensor:
        """Logits (R, V) of the next token; `tokens` (R,) were just chosen, None at the first call."""
        if tokens is None:
            _demand_fresh(self.cache.length)
        else:
            self.ids = tokens[:, None].to(self.ids)
        out = self.model.decode(self.ids, None, cache=self.cache, condition=self.condition, logits_at="last")
        assert out.logits is not None
        return out.logits

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from what row `rows[r]` was; beams of one source leave its keys where they are."""
        rows = rows.to(self.ids.device)
        source = self.source[rows]
        same = torch.equal(source, self.source)
        (self.cache.own if same else self.cache).reorder(rows)
        self.ids, self.source = self.ids[rows], source
        self.condition = None if self.condition is None else self.condition[rows]


def _demand_evaluation(model: Transformer | EncoderDecoder, kind: type, steps: str, other: str) -> None:
    if not isinstance(model, kind):
        raise TypeError(
            f"{steps} write with the class {kind.__name__}, got {type(model).__name__}; {other} take that one"
        )
    if model.training:
        raise ValueError("the model is in training mode, where dropout changes every answer; call model.eval() first")


def _demand_fresh(length: int) -> None:
    if length:
        raise ValueError("these steps were taken before; make new ones from the prompts for another decoding")
