r"""The parts of the DGCNN reader, each left out once: features of evidence, presence, focal loss, dilation, gates.

Claim  kexue.fm/archives/5409: eight features of evidence are worth about two points; the number for the whole passage,
       the focal loss, dilated and gated convolutions are recommended without figures. The post's data (WebQA, SogouQA:
       ten passages a question, word vectors of its own) are not at hand.
Test   characters only, windows of one passage a question, answers of at most 12 characters, the same weights' seed,
       batches and steps in every arm; F1 as CMRC 2018 counts it and exact match on the test part. Beside them the
       sentence that repeats most of the question.
Data   drcd, --set data=cmrc2018 (`danlu data list`); smoke: a few made-up sentences
Run    danlu run dgcnn_reading --scale smoke|full --seed 0 --set epochs=20
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data.reading import Question
from danlu.gallery.record import Result
from danlu.nn import DGCNN
from danlu.recipes._reading import questions, sentence_baseline
from danlu.tasks.device import accelerator
from danlu.tasks.fit import fit
from danlu.tasks.model_choice import choose_model
from danlu.tasks.read import DGCNNReadSettings, Task
from danlu.tasks.read_models import DGCNNReading
from danlu.tasks.tricks import Plan

__all__ = ["ARMS", "SCALES", "Config", "build", "run", "train"]

TASK = Task()
ARMS = ("full", "no features", "no presence", "cross-entropy", "no dilation", "no gate")


@dataclass(frozen=True)
class Config:
    """Some 2,800 questions, three windows each."""

    data: str = "drcd"  # "": the made-up sentences
    model: str = "dgcnn:6x96"
    longest: int = 12  # characters of an answer, in train and test
    epochs: float = 8.0
    batch_size: int = 32
    lr: float = 2e-3
    max_len: int = 256
    ema: float = 0.99
    train_rows: int = 0  # 0: all
    test_rows: int = 1_000
    precision: str = "bf16"


SCALES = {
    "smoke": Config(
        data="", model="dgcnn:3x16", epochs=1.0, batch_size=8, max_len=32, train_rows=24, test_rows=8, precision="fp32"
    ),
    "full": Config(),
}


class PlainConvolutions(nn.Module):
    """The same stack without gates: a rectified convolution a layer, no highway."""

    def __init__(self, dim: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(dim, dim, 3, padding="same", dilation=r) for r in dilations)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D), zeros where the mask is False."""
        for layer in self.layers:
            x = F.relu(layer((x * mask[..., None]).mT)).mT
        return x * mask[..., None]


def build(config: Config, arm: str, examples: Sequence[Question]) -> tuple[DGCNNReading, DGCNNReadSettings]:
    """The reader of an arm and its settings."""
    settings = DGCNNReadSettings(
        batch_size=config.batch_size, lr=config.lr, table_lr=config.lr, epochs=config.epochs, max_len=config.max_len,
        select="last",
    )  # fmt: skip
    changes = {
        "no features": {"features": False},
        "no presence": {"presence": False},
        "cross-entropy": {"alpha": 0.5, "gamma": 0.0},
    }
    settings = replace(settings, **changes.get(arm, {}))
    model = TASK.build(examples, "", choose_model(config.model), settings, Plan())
    assert isinstance(model, DGCNNReading)
    dim, dilations = model.config["dim"], model.config["dilations"]
    if arm == "no dilation":
        model.reader.passage = DGCNN(dim, [1] * len(dilations))
    if arm == "no gate":
        model.reader.passage = PlainConvolutions(dim, dilations)  # type: ignore[assignment]
    return model, settings


def train(config: Config, arm: str, seed: int, parts: dict[str, list[Question]]) -> DGCNNReading:
    """The trained reader of one arm."""
    torch.manual_seed(seed)
    model, settings = build(config, arm, parts["train"])
    data = TASK.training_set(model, parts["train"])
    fit(model, data, settings, Plan(ema=config.ema), accelerator("cpu", config.precision, None), seed)
    return model.eval()


def run(config: Config, seed: int) -> Result:
    """Every arm with one seed."""
    limits = {"train": config.train_rows, "test": config.test_rows}
    parts = {part: questions(config.data, part, limit, config.longest) for part, limit in limits.items()}
    measured: dict[str, float] = {}
    for arm in ARMS:
        scores = TASK.evaluate(train(config, arm, seed, parts), parts["test"]).metrics
        measured |= {f"F1, {arm}": scores["f1"], f"exact match, {arm}": scores["em"]}
    measured |= {f"gain, {arm} to full": measured["F1, full"] - measured[f"F1, {arm}"] for arm in ARMS[1:]}
    measured["F1, likeliest sentence"] = sentence_baseline(parts["test"])
    sizes = {part: len(examples) for part, examples in parts.items()}
    return Result(measured, {"gain, no features to full": 0.02}, {"arms": list(ARMS), "questions": sizes})
