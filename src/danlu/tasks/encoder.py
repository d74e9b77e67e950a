"""A transformer and its tokenizer under the head of a task, and the texts it reads.

A task model holds it as `encoder`. In a model folder its weights stand in model.safetensors under HuggingFace's names,
so that `AutoModel.from_pretrained(folder)` opens it, and what the task adds stands beside it in head.safetensors.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.data.errors import InputError
from danlu.data.sequences import pad_sequences
from danlu.tasks.folder import read_tensors, write_tensors
from danlu.tasks.settings import check_attention_word
from danlu.text.builtin import builtin_folder
from danlu.text.config import TransformerConfig
from danlu.text.encoder_decoder import EncoderDecoder
from danlu.text.load_model import load_model
from danlu.text.save_hf import save_hf
from danlu.text.sentencepiece_tokenizer import SpTokenizer
from danlu.text.single_stack import Transformer
from danlu.text.tokenizer import Encoding, Tokenizer
from danlu.text.transformer import build_transformer

__all__ = ["Encoded", "Encoder", "fresh_encoder", "load_encoder", "open_encoder", "other_parts"]
HEAD = "head.safetensors"
PIECES = "spiece.model"
FRESH_VOCABULARY = "mini-zh"  # of transformers with fresh weights


class Encoder(nn.Module):
    """A transformer with its tokenizer.

    Args:
        transformer: of one stack, or an encoder-decoder, which only generation calls (through `transformer`).
        tokenizer: cuts texts into its tokens.
        pieces: the SentencePiece file of the tokenizer, to be copied when saved.
    """

    def __init__(
        self, transformer: Transformer | EncoderDecoder, tokenizer: Tokenizer | SpTokenizer, pieces: Path | None = None
    ) -> None:
        super().__init__()
        self.transformer, self.tokenizer, self.pieces = transformer, tokenizer, pieces

    @property
    def config(self) -> TransformerConfig:
        """Of the transformer."""
        return self.transformer.config

    @property
    def dim(self) -> int:
        """Features of a hidden state."""
        return self.config.hidden_size

    @property
    def max_positions(self) -> int | None:
        """Tokens that a text may have, special ones included; None: any number."""
        config = self.config
        if config.traits.positions != "learned":
            return None  # relative: any length will do
        rows = config.max_positions - config.position_offset
        return rows**2 if config.hierarchical_position else rows

    def room(self, max_len: int) -> int:
        """`max_len`, but no more than there are positions."""
        return max_len if self.max_positions is None else min(max_len, self.max_positions)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Hidden states (B, T, D) of "ids" and "mask" (B, T), and of "segments" and "condition" where given."""
        return self._run(batch).hidden_states

    def layers(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The embeddings and what every block gives back, each (B, T, D)."""
        found: tuple[Tensor, ...] = self._run(batch, output_layers=True).layers
        return found

    def _run(self, batch: dict[str, Tensor], **options: Any) -> Any:
        segments = batch.get("segments") if self.config.segment_vocab_size else None
        condition = batch.get("condition")
        return self.transformer(batch["ids"], segments, mask=batch["mask"], condition=condition, **options)

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the token table."""
        return [self.transformer.get_input_embeddings().weight]

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and the tokenizer's files into a folder."""
        inner = folder / ".encoder"
        shutil.rmtree(inner, ignore_errors=True)
        save_hf(self.transformer, inner)
        for path in inner.iterdir():
            os.replace(path, folder / path.name)
        inner.rmdir()
        if isinstance(self.tokenizer, Tokenizer):
            self.tokenizer.save(folder)
        elif self.pieces is not None:
            shutil.copyfile(self.pieces, folder / PIECES)


def open_encoder(path: Path, *, random: bool = False, gelu: str = "", **changes: Any) -> Encoder:
    """The model and tokenizer of a folder or checkpoint.

    Args:
        path: whatever `danlu.text.load_model` opens.
        random: build the same shape with fresh weights, drawn from the global generator.
        gelu: "erf", "tanh" or "sigmoid", the form to compute with; "": the model's own.
        **changes: fields of the configuration, and `heads`.

    Returns:
        The encoder, in training mode.

    Raises:
        InputError: it cannot be opened, it has no tokenizer files, or it cannot have that attention or gelu.
    """
    heads = changes.pop("heads", ())
    attention = changes.pop("attention", "")
    tokenizer, pieces = _tokenizer(path)
    if not attention and not gelu:
        model = load_model(path, heads=heads, **changes)
        if random:
            model = build_transformer(model.config, model.heads)
    else:
        stored = load_model(path, heads=heads, **changes)
        config = other_parts(stored.config, attention, gelu)
        fresh = build_transformer(config, stored.heads)
        model = fresh if random else with_weights_of(stored, fresh)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model {model.config.vocab_size:,} rows; "
            "they do not belong together"
        )
    return Encoder(model, tokenizer, pieces).train()


def other_parts(config: TransformerConfig, attention: str = "", gelu: str = "") -> TransformerConfig:
    """The configuration with another kind of attention or another form of gelu.

    Args:
        config: of a model.
        attention: one of `danlu.nn.ATTENTIONS`; "": as it is.
        gelu: "erf", "tanh" or "sigmoid"; "": as it is.

    Returns:
        The configuration.

    Raises:
        InputError: the family cannot have that attention, or it computes with no gelu.
    """
    if gelu and not config.activation.startswith("gelu"):
        raise InputError(f"--gelu {gelu}: this {config.family} computes with {config.activation}, not with a gelu")
    activation = config.activation if not gelu else "gelu" if gelu == "erf" else f"gelu_{gelu}"
    if attention:
        check_attention_word(attention)
    try:
        return replace(config, attention=attention or config.attention, activation=activation)
    except ValueError as error:
        raise InputError(f"--attention {attention}: {error}") from None


def with_weights_of(stored: nn.Module, fresh: Transformer | EncoderDecoder) -> Transformer | EncoderDecoder:
    """The fresh model with all weights of the stored one, which must be all it has but random projections.

    Raises:
        InputError: the fresh model has other weights.
    """
    given = stored.state_dict()
    own = {name for name in fresh.state_dict() if not name.endswith(".attention.projection")}
    if own != set(given):
        raise InputError(
            f"attention {fresh.config.attention!r} has weights of its own ({sorted(own - set(given))[0]}, ...), which "
            "a pretrained model lacks; give --set init=random, or a fresh model such as --model bert:4x256"
        )
    fresh.load_state_dict(given, strict=False)
    return fresh


def fresh_encoder(family: str, gelu: str = "", *, heads: Sequence[str] = (), **sizes: Any) -> Encoder:
    """A transformer with fresh weights, drawn from the global generator, and the vocabulary of mini-zh.

    Args:
        family: of `danlu.text.config`.
        gelu: as of `open_encoder`.
        heads: of the transformer.
        **sizes: fields of its configuration.

    Returns:
        The encoder, in training mode.
    """
    tokenizer = Tokenizer.load(builtin_folder(FRESH_VOCABULARY))
    attention = sizes.pop("attention", "")
    config = TransformerConfig.of(family, vocab_size=tokenizer.vocab_size, **sizes)
    return Encoder(build_transformer(other_parts(config, attention, gelu), heads), tokenizer).train()


def load_encoder(folder: Path, **options: Any) -> Encoder:
    """The encoder of a folder that `danlu train` wrote, with its weights, in evaluation mode.

    Args:
        folder: the model folder.
        **options: of `danlu.text.load_hf`, such as heads.

    Returns:
        The encoder.

    Raises:
        InputError: a file is missing or damaged.
    """
    tokenizer, pieces = _tokenizer(folder)
    return Encoder(load_model(folder, **options), tokenizer, pieces).eval()


def save_head(model: nn.Module, folder: Path) -> None:
    """Write what a task model has beside its encoder."""
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    write_tensors(folder / HEAD, own)


def load_head(model: nn.Module, folder: Path) -> None:
    """Fill what a task model has beside its encoder.

    Raises:
        InputError: the file is missing, damaged, or of another model.
    """
    stored = read_tensors(folder / HEAD)
    own = {name for name in model.state_dict() if not name.startswith("encoder.")}
    try:
        if own != set(stored):
            raise RuntimeError(f"names differ: {', '.join(sorted(own ^ set(stored))[:3])}")
        model.load_state_dict(stored, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder / HEAD} does not fit its task.json ({reason}); restore both from one copy") from None


class Encoded:
    """Encoded texts as training items; collates the right-padded batches that `Encoder` reads.

    Args:
        rows: ids and segments of every item.
        targets: name -> a number for every item, collated as (B,); or a number for every token, collated as (B, T)
            with -100 at padding.
        per_token: a batch's loss is divided by its tokens instead of its items.
    """

    def __init__(
        self, rows: Sequence[Encoding], targets: dict[str, Sequence[Any]] | None = None, per_token: bool = False
    ) -> None:
        self.rows, self.targets, self.per_token = rows, targets or {}, per_token
        self.lengths = [len(row.ids) for row in rows]

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by."""
        return float(sum(self.lengths[i] for i in indices) if self.per_token else len(indices))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """ids, segments, mask (B, T) and the targets."""
        lengths = torch.tensor([self.lengths[i] for i in indices])
        batch = {
            "ids": pad_sequences([self.rows[i].ids for i in indices]),
            "segments": pad_sequences([self.rows[i].segment_ids for i in indices]),
            "mask": torch.arange(int(lengths.max())) < lengths[:, None],
        }
        for name, values in self.targets.items():
            some = [values[i] for i in indices]
            batch[name] = pad_sequences(some, value=-100) if isinstance(some[0], Sequence) else torch.tensor(some)
        return batch


def _tokenizer(path: Path) -> tuple[Tokenizer | SpTokenizer, Path | None]:
    folder = path if path.is_dir() else path.parent
    if (folder / PIECES).is_file():
        return SpTokenizer(folder / PIECES), folder / PIECES
    if not (folder / "vocab.txt").is_file():
        raise InputError(f"{folder} has neither vocab.txt nor {PIECES}; put the tokenizer's file beside the model")
    return Tokenizer.load(folder), None
