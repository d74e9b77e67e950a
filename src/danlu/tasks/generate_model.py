"""The model of task generate: a transformer that reads a source and writes on, its conditions, and how it writes.

Under UniLM one stack reads the source in both directions and the target from left to right; an encoder-decoder (T5) has
a stack for each. Norms follow the condition vector, if there is one.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data.errors import InputError
from danlu.data.pairs import Condition, Pair
from danlu.tasks.encoder import Encoder
from danlu.tasks.generate_conditions import Conditions
from danlu.tasks.objective import Objective
from danlu.text import (
    EncoderDecoder,
    EncoderDecoderSteps,
    Generated,
    Tokenizer,
    TransformerSteps,
    beam_search,
    greedy,
    sample,
)
from danlu.text.sampling_filters import forbid
from danlu.text.steps import Steps

__all__ = ["GenerateModel"]
ROWS = 32  # prompts decoded together
SPECIAL = ("<pad>", "<unk>", "<s>")  # pieces that are never written; of WordPiece all in brackets are


class GenerateModel(nn.Module):
    """Transformer and condition vectors; returns the summed loss of a batch.

    Args:
        encoder: its transformer is built for application "unilm", or is an encoder-decoder.
        config: "max_len", "max_target", "decoding" (how texts are written) and "condition" (`describe_conditions`).
    """

    def __init__(self, encoder: Encoder, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.conditions = Conditions(config["condition"]) if config["condition"] else None
        self.replacement: float | None = None  # share of target inputs that trick token_replacement exchanges
        self.real: Sequence[Pair] = ()  # training pairs, from which a judge may learn; not stored
        if encoder.tokenizer.end_id is None:
            raise InputError("this model's tokenizer has no end token, so no text would ever end; take another model")
        self.end_id = int(encoder.tokenizer.end_id)
        self.pad_id = int(encoder.config.pad_token_id or 0)
        self.start_id = self.pad_id  # of a decoder: T5 begins with its padding
        self.unwritten = torch.tensor(sorted(_unwritten(encoder) - {self.end_id}))

    @property
    def two_stacks(self) -> bool:
        """Whether source and target are read by stacks of their own."""
        return isinstance(self.encoder.transformer, EncoderDecoder)

    @property
    def source_room(self) -> int:
        """Tokens a source may have."""
        return int(self.config["max_len"] - (0 if self.two_stacks else self.config["max_target"]))

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the token table, which source and target share."""
        return self.encoder.attack_weights()

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (N, V) of the scored positions, row by row, float32."""
        condition = None if self.conditions is None else self.conditions(batch)
        model, scored = self.encoder.transformer, batch["scored"]
        if isinstance(model, EncoderDecoder):
            out = model(
                batch["ids"], batch["inputs"], mask=batch["mask"], decoder_mask=scored, condition=condition
            ).logits[scored]
        else:
            out = model(
                batch["ids"], batch["segments"], mask=batch["mask"], condition=condition, logits_at=scored
            ).logits
        return out.float()

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum over the target's tokens of the cross-entropy."""
        return F.cross_entropy(self.logits(batch), batch["labels"][batch["scored"]], reduction="sum")

    def write(
        self, sources: Sequence[list[int]], conditions: Sequence[Condition], seeds: Sequence[str] = (), **changes: Any
    ) -> list[tuple[list[int], float, bool]]:
        """Ids, score and whether the end came, of a text for each source and condition.

        Args:
            sources: ids with special tokens.
            conditions: as many, empty where the model has none.
            seeds: as many texts that, with the seed of "decoding", fix what is drawn; the same in any batch.
            **changes: of "decoding": "method" ("beam" or "sample"), "beam", "length_penalty", "temperature", "top_p",
                "seed".
        """
        rule = {**self.config["decoding"], **changes}
        found: list[tuple[list[int], float, bool]] = [([], 0.0, False)] * len(sources)
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        for begin in range(0, len(order), ROWS):
            some = order[begin : begin + ROWS]
            device = self.encoder.transformer.get_input_embeddings().weight.device
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                steps = self._steps([sources[i] for i in some], [conditions[i] for i in some], device)
                written = self._decode(steps, rule, [seeds[i] if seeds else "" for i in some])
            for row, i in enumerate(some):
                ids = written.tokens[row, 0, : int(written.lengths[row, 0])].tolist()
                finished = bool(written.finished[row, 0])
                found[i] = (ids[:-1] if finished else ids, float(written.scores[row, 0]), finished)
        return found

    def _steps(self, sources: list[list[int]], conditions: list[Condition], device: torch.device) -> Steps:
        vectors = None
        if self.conditions is not None:
            vectors = self.conditions({k: v.to(device) for k, v in self.conditions.encode(conditions).items()})
        model, limit = self.encoder.transformer, self.config["max_target"]
        if isinstance(model, EncoderDecoder):
            return EncoderDecoderSteps(model, sources, limit, start_id=self.start_id, condition=vectors)
        return TransformerSteps(model, sources, limit, condition=vectors)

    def _decode(self, steps: Steps, rule: dict[str, Any], seeds: list[str]) -> Generated:
        def adjust(written: Tensor, logits: Tensor) -> Tensor:
            return forbid(logits, self.unwritten.to(logits.device))

        limit = self.config["max_target"]
        if rule["method"] == "sample":
            generators = [_generator(f"{rule['seed']} {seed}") for seed in seeds]
            top_p = rule["top_p"] if rule["top_p"] < 1 else None
            return sample(
                steps, end_id=self.end_id, max_new_tokens=limit, min_new_tokens=1, temperature=rule["temperature"],
                top_p=top_p, consistent=True, generator=generators, adjust=adjust,
            )  # fmt: skip
        if rule["beam"] == 1:
            return greedy(steps, end_id=self.end_id, max_new_tokens=limit, min_new_tokens=1, adjust=adjust)
        return beam_search(
            steps, end_id=self.end_id, num_beams=rule["beam"], max_new_tokens=limit, min_new_tokens=1,
            length_penalty=rule["length_penalty"], adjust=adjust,
        )  # fmt: skip

    def text(self, ids: Sequence[int]) -> str:
        """The text of written ids."""
        return self.encoder.tokenizer.decode(ids)


def _unwritten(encoder: Encoder) -> set[int]:
    """Ids that stand for no text: special tokens, and rows of the table that no token has."""
    tokenizer, rows = encoder.tokenizer, encoder.config.vocab_size
    if isinstance(tokenizer, Tokenizer):
        words = {i for token, i in tokenizer.vocab.items() if not re.fullmatch(r"\[.+\]", token)}
        return set(range(rows)) - words
    return {tokenizer.token_to_id(token) for token in SPECIAL} | set(range(tokenizer.vocab_size, rows))


def _generator(words: str) -> torch.Generator:
    """A stream that belongs to these words."""
    mark = hashlib.sha256(words.encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(mark[:8], "big") % 2**63)
