"""The numbers of the training loop that `--set` changes; each task has its own defaults."""

from dataclasses import dataclass

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Numbers of the loop; `--set name=value` changes one. Each task has its own defaults."""

    epochs: float = 0.0  # passes over the training data, 0.5 is half a pass; 0: 2,000 steps, within 2 to 30 passes
    batch_size: int = 64  # sequences a step, over all processes
    lr: float = 2e-3  # peak rate of AdamW
    table_lr: float = 2e-3  # peak rate of SparseAdam, which moves the rows of big tables that a batch touched
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the steps
    clip: float = 1.0  # largest norm of the gradient of the dense weights; 0 switches it off
    max_len: int = 128  # tokens of a window; longer texts are windowed, never cut
    min_count: int = 2  # tokens rarer than this are unknown
    dropout: float = 0.2
    head_rate: float = 1.0  # factor on lr for what stands above a transformer
    init: str = "pretrained"  # "random" gives a stored transformer fresh weights
    attention: str = ""  # of a transformer: nystrom, performer, synthesizer_random ...; "" leaves the model's own
    gelu: str = ""  # of a transformer: erf, tanh or sigmoid; "" leaves the model's own
    select: str = "best"  # weights to keep: "best" on dev, or "last"
    patience: int = 0  # evaluations without a better dev score before stopping; 0 never stops
    evaluations: int = 0  # evaluations on dev during training; 0: one an epoch
    save_every: int = 200  # steps between two training states on disk
