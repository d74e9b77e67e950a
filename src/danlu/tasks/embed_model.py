r"""Sentence vectors and what they are trained on.

    v = pool(h)                                              similarity of two texts: the cosine of their v
    simcse       a sentence and itself under another draw of dropout, the others of the batch as negatives     (1)
    contrastive  an anchor and its positive; negatives: those of the others, and the hard ones given           (2)
    cosent       the cosines of pairs in the order of their scores (`danlu.losses.cosent_loss`)                (3)

(1) is (2) with the sentence in both places: what differs is dropout. Both take InfoNCE, or FlatNCE, over cosines
divided by the temperature; (3) multiplies them by its inverse. Rows of one anchor, or of one sentence, are no negatives
of each other. A row that meets no negative at all (the last batch of one row) trains nothing. With several processes
the negatives are those of the process.

Source: Gao et al., 2021, arXiv:2104.08821 (1), (2); kexue.fm/archives/8348, 8586 and 8847.
Shapes: B rows of the data, each of 1 to 3 texts, D features, N candidates.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.losses import contrastive_scores, cosent_loss, flat_nce, info_nce
from danlu.nn.pooling import pool
from danlu.tasks.encoder import Encoded, Encoder
from danlu.tasks.objective import Objective
from danlu.text.sentence_vectors import POOLINGS as LAYERS
from danlu.text.whitening_module import WhiteningModule
from danlu.text.whitening_transformer import Whitening

__all__ = ["POOLINGS", "Embedder", "GroupedTexts", "encoded_texts", "text_vectors"]
POOLINGS = {"mean": "last_avg", "first": "cls", "max": "max", "first_last_mean": "first_last_avg"}  # in `danlu.text`
BATCH = 128  # texts read together when nothing is trained


class Embedder(nn.Module):
    """Encoder and pooling; after training perhaps a whitening map.

    Args:
        encoder: the transformer with its tokenizer.
        config: "pooling" (a key of POOLINGS), "max_len", "objective" ("simcse", "contrastive" or "cosent"), "loss"
            ("infonce" or "flatnce"), "temperature"; "whitening": features after whitening, 0 for none.
    """

    def __init__(self, encoder: Encoder, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        dim = config.get("whitening")
        self.whitening: WhiteningModule | None = WhiteningModule(encoder.dim, dim) if dim else None

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the token table."""
        return self.encoder.attack_weights()

    def whiten(self, vectors: Tensor, dim: int | None = None) -> None:
        """Whiten from now on, by the statistics of these pooled vectors (N, D), keeping `dim` directions.

        Raises:
            ValueError: fewer directions have variance, or vectors that are not finite.
        """
        module = Whitening(dim=dim).fit(vectors).to_module()
        self.whitening = module.to(next(self.parameters()).device)
        self.config = {**self.config, "whitening": module.out_features}

    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        """Vectors (B, D) of "ids" and "mask" (B, T), float32, before any whitening."""
        kind, taken = LAYERS[POOLINGS[self.config["pooling"]]]
        layers = (self.encoder(batch),) if taken == (-1,) else self.encoder.layers(batch)
        return pool([layers[i].float() for i in taken], batch["mask"], kind)  # a mean in bfloat16 would be coarse

    def vectors(self, batch: dict[str, Tensor]) -> Tensor:
        """Unit vectors (B, D), or (B, K) after whitening, float32."""
        v = self.pooled(batch)
        return F.normalize(v if self.whitening is None else self.whitening(v), dim=-1)

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum over the rows of the data of their losses; "target" (B,) orders them, or says which belong together."""
        target = batch["target"]
        first, *others = self.pooled(batch).split(len(target))  # (B, D) each
        if self.config["objective"] == "cosent":
            cosines = F.cosine_similarity(first, others[0], dim=-1)  # (B,)
            return cosent_loss(cosines, target, 1 / self.config["temperature"]) * len(target)  # eq. (3)
        negatives = others[1] if len(others) > 1 else None
        scores, place, mask = contrastive_scores(first, others[0], self.config["temperature"], negatives, target)
        positive = F.one_hot(place, scores.shape[1]).bool()  # (B, N)
        candidate = torch.ones_like(positive) if mask is None else mask
        meets = (candidate & ~positive).any(1)  # (B,)
        if not meets.any():
            return first.sum() * 0
        loss = flat_nce if self.config["loss"] == "flatnce" else info_nce
        return loss(scores, positive & meets[:, None], candidate, "sum")  # eq. (1), (2)


class GroupedTexts:
    """Rows of 1 to 3 texts as training items: all first texts of a batch, then all second ones, then the third.

    Args:
        encoder: whose tokenizer cuts the texts.
        columns: the texts by place, each as long as there are rows.
        target: a whole number for every row: the place of its score among the scores, or the number of its anchor.
        max_len: tokens of a text; what lies beyond is cut.
    """

    def __init__(self, encoder: Encoder, columns: Sequence[Sequence[str]], target: Sequence[int], max_len: int) -> None:
        number: dict[str, int] = {}
        self.places = [[number.setdefault(text, len(number)) for text in column] for column in columns]
        self.texts, self.cut = encoded_texts(encoder, list(number), max_len)
        self.target = torch.tensor(target)
        rows = zip(*self.places, strict=True)
        self.lengths = [max(self.texts.lengths[i] for i in row) for row in rows]

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by: its rows."""
        return float(len(indices))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """ids, segments and mask (R B, T) of R texts a row, and target (B,)."""
        flat = [place[i] for place in self.places for i in indices]
        return self.texts.collate(flat) | {"target": self.target[list(indices)]}


def encoded_texts(encoder: Encoder, texts: Sequence[str], max_len: int) -> tuple[Encoded, list[bool]]:
    """Texts as the model reads them, and which of them were cut."""
    room = encoder.room(max_len)
    rows = encoder.tokenizer.encode_batch(texts)
    cut = [len(row.ids) > room for row in rows]
    for i in (i for i, long in enumerate(cut) if long):
        (rows[i],) = encoder.tokenizer.encode_batch([texts[i]], maxlen=room)
    return Encoded(rows), cut


@torch.no_grad()
def text_vectors(model: Embedder, texts: Sequence[str], whiten: bool = True) -> tuple[Tensor, list[bool]]:
    """Vectors of texts on the CPU, like texts read once, and which texts were cut.

    Args:
        model: in evaluation mode.
        texts: any number.
        whiten: give what the model gives, unit vectors; False: pooled hidden states as they are.

    Returns:
        (N, D) float32 and N times whether the text was cut.
    """
    number: dict[str, int] = {}
    place = [number.setdefault(text, len(number)) for text in texts]
    data, cut = encoded_texts(model.encoder, list(number), model.config["max_len"])
    device = next(model.parameters()).device
    width = (whiten and model.config.get("whitening")) or model.encoder.dim
    out = torch.zeros(len(number), width)
    order = sorted(range(len(number)), key=lambda i: data.lengths[i])
    read = model.vectors if whiten else model.pooled
    for begin in range(0, len(order), BATCH):
        chunk = order[begin : begin + BATCH]
        out[chunk] = read({k: v.to(device) for k, v in data.collate(chunk).items()}).cpu()
    return out[place], [cut[i] for i in place]
