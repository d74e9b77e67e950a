"""The numbers of the training loop that `--set` changes; each task has its own defaults."""

from dataclasses import dataclass

from danlu.data.errors import InputError

__all__ = ["LoopSettings", "Settings", "check_attention_word"]


@dataclass(frozen=True)
class LoopSettings:
    """Numbers of `danlu.tasks.fit.fit`, whatever it trains."""

    epochs: float = 0.0  # passes over the training data, 0.5 is half a pass; 0: 2,000 steps, within 2 to 30 passes
    batch_size: int = 64  # items a step, over all processes
    lr: float = 2e-3  # peak rate of AdamW
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the steps
    clip: float = 1.0  # largest norm of the gradient of the dense weights; 0 switches it off
    select: str = "best"  # weights to keep: "best" on dev, or "last"
    patience: int = 0  # evaluations without a better dev score before stopping; 0 never stops
    evaluations: int = 0  # evaluations on dev during training; 0: one an epoch
    save_every: int = 200  # steps between two training states on disk


@dataclass(frozen=True)
class Settings(LoopSettings):
    """Numbers of a text task; `--set name=value` changes one. Each task has its own defaults."""

    table_lr: float = 2e-3  # peak rate of SparseAdam, which moves the rows of big tables that a batch touched
    max_len: int = 128  # tokens of a window; longer texts are windowed, never cut
    min_count: int = 2  # tokens rarer than this are unknown
    dropout: float = 0.2
    head_rate: float = 1.0  # factor on lr for what stands above a transformer
    init: str = "pretrained"  # "random" gives a stored transformer fresh weights
    attention: str = ""  # of a transformer: nystrom, performer, synthesizer_random ...; "" leaves the model's own
    gelu: str = ""  # of a transformer: erf, tanh or sigmoid; "" leaves the model's own


def check_attention_word(word: str) -> None:
    """Refuse a word that is no kind of attention; whether a family can have the kind, its configuration tells.

    Raises:
        InputError: none of `danlu.nn.ATTENTIONS`.
    """
    from danlu.nn import ATTENTIONS

    if word not in ATTENTIONS:
        raise InputError(f"setting attention is one of {', '.join(ATTENTIONS)}; got {word!r}")
