"""What a pretraining run is asked for: its numbers, its model, and what may change when it goes on."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch

from danlu.data.errors import InputError
from danlu.nn.positions import sinusoidal_positions
from danlu.tasks.encoder import other_parts
from danlu.text import Transformer, TransformerConfig, build_transformer

__all__ = ["CHANGEABLE", "PretrainSettings", "PretrainSpec", "check_new_end", "fresh_model", "model_config"]
FAMILIES = {"mlm": ("bert", "nezha", "roformer"), "lm": ("gpt2", "bert")}
INITIAL = 0.64  # standard deviation of fresh weights times sqrt(width): 0.04 at 256, near BERT's 0.02 at 768
CHANGEABLE = ("steps", "decay", "save_every", "log_every", "eval_every")  # on resuming


@dataclass(frozen=True)
class PretrainSettings:
    """Numbers of the run; `--set name=value` changes one."""

    steps: int = 20_000
    batch_tokens: int = 16_384  # tokens a step
    length: int = 128  # tokens of a row
    long_length: int = 512  # tokens of a row of a long step
    long_share: float = 0.1  # share of the steps (and of the tokens) that are long
    lr: float = 1e-3  # peak rate
    warmup_steps: int = 500
    decay: float = 0.15  # share of the steps over which the rate falls to 0
    weight_decay: float = 0.01
    dropout: float = 0.0
    attention: str = ""  # nystrom, performer, synthesizer_random ...; "": softmax
    gelu: str = ""  # erf, tanh or sigmoid; "": the family's
    clip: float = 1.0  # largest norm of the gradient; 0 switches it off
    mask_share: float = 0.15  # of the tokens, mlm only
    part_tokens: int = 8_192  # tokens that go through the model at a time; bounds the memory
    save_every: int = 300  # seconds between two training states on disk
    log_every: int = 50  # steps
    eval_every: int = 500  # steps between two looks at --dev

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens", "part_tokens", "save_every", "log_every", "eval_every", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"setting {name} must be above 0, got {getattr(self, name)}")
        for name in ("long_share", "decay", "mask_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"setting {name} is a share and lies between 0 and 1, got {getattr(self, name)}")
        if not 4 <= self.length <= self.long_length <= 65_536:
            raise InputError(
                f"settings length and long_length must be 4 <= length <= long_length, got {self.length} and "
                f"{self.long_length}"
            )
        if self.warmup_steps < 0 or not 0 <= self.dropout < 1:
            raise InputError(
                f"warmup_steps must be >= 0 and dropout in [0, 1), got {self.warmup_steps}, {self.dropout}"
            )

    @property
    def declines_from(self) -> int:
        """The step with which the rate begins to fall."""
        return max(self.steps - math.ceil(self.decay * self.steps), min(self.warmup_steps, self.steps))


@dataclass(frozen=True)
class PretrainSpec:
    """What `danlu pretrain` was asked for."""

    kind: str  # "mlm" or "lm"
    text: tuple[str, ...]
    dev: tuple[str, ...] = ()
    model: str = ""  # "bert:6x256"; "": that, for lm gpt2:6x256
    vocab: str | None = None
    vocab_size: int = 7_500
    segmenter: str | None = None
    seed: int = 0
    settings: PretrainSettings = field(default_factory=PretrainSettings)
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    store: str = "fp32"


def model_config(spec: PretrainSpec, vocab_size: int) -> TransformerConfig:
    """The configuration that a model name such as bert:6x256 means: heads of 64, four times the width inside.

    Args:
        spec: kind, model and settings.
        vocab_size: of the tokenizer.

    Returns:
        The configuration.

    Raises:
        InputError: no such family for this kind, or sizes that do not fit.
    """
    families = FAMILIES[spec.kind]
    name = spec.model or f"{families[0]}:6x256"
    found = re.fullmatch(r"([a-z0-9_]+):(\d+)x(\d+)", name)
    if not found or found[1] not in families:
        raise InputError(
            f"--model {name!r} is nothing to pretrain by {spec.kind}; give FAMILY:LAYERSxWIDTH with one of "
            f"{', '.join(families)}, for example {families[0]}:6x256"
        )
    family, layers, width = found[1], int(found[2]), int(found[3])
    if not 1 <= layers <= 96 or not 8 <= width <= 8_192 or (width > 64 and width % 64):
        raise InputError(f"--model {name}: 1 to 96 layers, and a width that is a multiple of 64 (or at most 64)")
    sizes: dict[str, Any] = {"num_heads": max(1, width // 64), "hidden_dropout": spec.settings.dropout}
    sizes |= {"attention_dropout": spec.settings.dropout, "max_positions": max(512, spec.settings.long_length)}
    sizes["initializer_range"] = INITIAL * width**-0.5
    if spec.kind == "lm":
        sizes["application"] = "lm"
    config = TransformerConfig.of(
        family, vocab_size=vocab_size, hidden_size=width, num_layers=layers, intermediate_size=4 * width, **sizes
    )
    return other_parts(config, spec.settings.attention, spec.settings.gelu)


def fresh_model(spec: PretrainSpec, vocab_size: int) -> Transformer:
    """The model before its first step, drawn by the seed; position vectors begin as sines and cosines.

    Args:
        spec: kind, model, seed.
        vocab_size: of the tokenizer.

    Returns:
        The model. Distances can be told from the first step on: with random position vectors a small model spends much
        of a short run on learning to look at its neighbours.
    """
    config = model_config(spec, vocab_size)
    torch.manual_seed(spec.seed)
    model = build_transformer(config, ["mlm"])
    assert isinstance(model, Transformer)
    table = model.embeddings.position
    if table is not None and table.weight.shape[1] % 2 == 0:
        waves = sinusoidal_positions(torch.arange(len(table.weight)), table.weight.shape[1])
        with torch.no_grad():
            table.weight.copy_(waves * (config.initializer_range * 2**0.5))  # as large as random ones
    return model


def check_new_end(old: PretrainSettings, new: PretrainSettings, position: int) -> None:
    """Refuse a new number of steps once the rate falls, or one whose decline would have begun already."""
    if position > old.declines_from:
        raise InputError(
            f"--resume at step {position:,}: the rate falls since step {old.declines_from:,} of {old.steps:,}, so "
            f"steps and decay can no longer change; leave them at {old.steps} and {old.decay}"
        )
    if position > new.declines_from:
        least = math.ceil(position / (1 - new.decay)) if new.decay < 1 else position
        raise InputError(
            f"--resume at step {position:,}: with steps={new.steps} the rate would have begun to fall at step "
            f"{new.declines_from:,}; give --set steps={least} or more, or a smaller decay"
        )
