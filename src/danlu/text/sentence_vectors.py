r"""One vector a sentence: a pooling of the hidden states of any encoder, and averages of word vectors as the baseline.

    H_0: embeddings, H_1 ... H_L: outputs of the layers, pooled over the tokens by `danlu.nn.pool`
    cls               the first token of H_L                                                               (1)
    last_avg          mean of H_L                        last2_avg        mean of H_{L-1} and H_L          (2)
    first_last_avg    mean of H_1 and H_L                embed_last_avg   mean of H_0 and H_L              (3)
    embed_avg         mean of H_0                        max              maximum of H_L                   (4)
    pooler            what the pooler makes of the first token of H_L                                      (5)
    word averages     v = sum_t w_t e_t / sum_t w_t over the tokens that have a vector                     (6)

Means are over all tokens, [CLS] and [SEP] among them, padding excluded; for one layer's means this is what the post's
Keras code does. The post finds first_last_avg best for models that were not trained for similarity. Common scripts mean
different things by its name: H_1 here as in the post, H_0 in others (3), and BERT-flow's "last2avg" is (3), not (2).
Texts are sorted by length and batched under a limit of tokens; a vector does not depend on its batch.

Source: kexue.fm/archives/8069; Li et al., 2020, arXiv:2011.05864.
Shapes: N texts, B of a batch, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data.sequences import pad_sequences
from danlu.math.precision import wide
from danlu.nn.pooling import pool
from danlu.text.encoder_decoder import EncoderDecoder
from danlu.text.hf_adapter import HFEncoder
from danlu.text.single_stack import Transformer
from danlu.text.tokenizer import PairEncoder

__all__ = ["POOLINGS", "pool_layers", "sentence_vectors", "word_averages"]

POOLINGS = {  # name: kind of `danlu.nn.pool`, layers it takes; the pooler is no pooling of layers
    "cls": ("cls", (-1,)),
    "last_avg": ("mean", (-1,)),
    "last2_avg": ("first_last_mean", (-2, -1)),
    "first_last_avg": ("first_last_mean", (1, -1)),
    "embed_last_avg": ("first_last_mean", (0, -1)),
    "embed_avg": ("mean", (0,)),
    "max": ("max", (-1,)),
}
Encoder = Transformer | EncoderDecoder | HFEncoder | Callable[[Tensor, Tensor], Tensor | Sequence[Tensor]]


def pool_layers(layers: Sequence[Tensor], mask: Tensor | None = None, pooling: str = "first_last_avg") -> Tensor:
    """One vector for each row of the hidden states of all layers, eqs. (1) to (4).

    Args:
        layers: H_0 to H_L, each (B, T, D); `layers` of a danlu model with output_layers=True, or `hidden_states` of
            transformers.
        mask: (B, T) bool, True = keep; None keeps all.
        pooling: a key of `POOLINGS`.

    Returns:
        (B, D) in the dtype of the layers; zeros for rows that keep nothing.

    Raises:
        ValueError: an unknown pooling, fewer than two layers, what `danlu.nn.pool` refuses.

    >>> layers = [torch.full((1, 2, 1), value) for value in (0.0, 1.0, 3.0, 9.0)]
    >>> [pool_layers(layers, pooling=p).item() for p in ("last2_avg", "first_last_avg", "embed_last_avg")]
    [6.0, 5.0, 4.5]
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if isinstance(layers, Tensor) or len(layers) < 2:
        raise ValueError("pool_layers needs the embeddings and the output of every layer; use danlu.nn.pool for one")
    kind, taken = POOLINGS[pooling]
    return pool([layers[i] for i in taken], mask, kind)


def sentence_vectors(
    encoder: Encoder,
    tokenizer: PairEncoder,
    texts: Sequence[str],
    pooling: str | Sequence[str] = "first_last_avg",
    max_len: int = 64,
    batch_tokens: int = 4096,
    normalize: bool = False,
    as_numpy: bool = False,
) -> Any:
    """The vectors of some texts, in their order and without a graph.

    Args:
        encoder: a danlu model (of an encoder-decoder the encoder), an HFEncoder, or anything called as encoder(ids,
            mask) that returns hidden states (B, T, D) or those of all layers, embeddings first. A module is in
            evaluation mode meanwhile.
        tokenizer: of the encoder.
        texts: any strings; a text without tokens gets zeros.
        pooling: a key of `POOLINGS` or "pooler"; or several.
        max_len: tokens of a text, special ones included; the rest is cut off.
        batch_tokens: tokens of a batch, padding included; one text at least is in it.
        normalize: bring vectors to length 1.
        as_numpy: return arrays.

    Returns:
        (N, D) float32 tensor on the CPU (float64 of a float64 encoder), or array; for several poolings a dict of them.

    Raises:
        TypeError: one text is given instead of several.
        ValueError: an unknown pooling, or one that needs layers or a pooler that the encoder does not give; max_len
            beyond the positions of the encoder.
    """
    if isinstance(texts, str):
        raise TypeError("sentence_vectors takes several texts, got one; write sentence_vectors(encoder, ..., [text])")
    names = [pooling] if isinstance(pooling, str) else list(pooling)
    for name in names:
        if name not in POOLINGS and name != "pooler":
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)} or pooler, got {name!r}")
    if not names or batch_tokens < 1:
        raise ValueError(f"give at least one pooling and batch_tokens >= 1, got {names} and {batch_tokens}")
    rows = [row.ids for row in tokenizer.encode_batch(texts, maxlen=max_len)]
    order = sorted((i for i in range(len(rows)) if rows[i]), key=lambda i: -len(rows[i]))
    found: dict[str, Tensor] = {}
    with _evaluating(encoder), torch.no_grad():
        for chosen in _under(order, [len(row) for row in rows], batch_tokens):
            lengths = torch.tensor([len(rows[i]) for i in chosen])
            ids, mask = pad_sequences([rows[i] for i in chosen]), torch.arange(int(lengths.max())) < lengths[:, None]
            device = _device(encoder)
            for name, part in _pooled(encoder, ids.to(device), mask.to(device), names).items():
                part = part.detach().to("cpu", torch.promote_types(part.dtype, torch.float32))
                if name not in found:
                    found[name] = part.new_zeros(len(rows), part.shape[1])
                found[name][chosen] = F.normalize(part, dim=-1) if normalize else part
    if not found:  # no text, or none with a token
        found = {name: torch.zeros(len(rows), _width(encoder)) for name in names}
    made = {name: found[name].numpy() if as_numpy else found[name] for name in names}
    return made[pooling] if isinstance(pooling, str) else made


def word_averages(
    sentences: Sequence[Sequence[str]],
    rows: Mapping[str, int],
    table: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Means of the vectors of the words of each sentence, eq. (6).

    Args:
        sentences: each a list of words; those without a vector are passed over.
        rows: word -> row of the table.
        table: (V, D) vectors.
        weights: (V,) w, such as inverse frequencies, none negative; None: all 1.

    Returns:
        (N, D) in the dtype of the table; zeros for sentences without a known word.

    Raises:
        ValueError: table or weights of another shape.

    >>> word_averages([["a", "b", "?"], ["?"]], {"a": 0, "b": 1}, torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
    tensor([[2., 1.],
            [0., 0.]])
    """
    if table.ndim != 2 or (weights is not None and weights.shape != table.shape[:1]):
        given = "none" if weights is None else f"{tuple(weights.shape)}"
        raise ValueError(
            f"word_averages needs a table (V, D) and weights (V,); got {tuple(table.shape)} and weights {given}"
        )
    dtype, table = table.dtype, wide(table)
    known = [[rows[word] for word in sentence if word in rows] for sentence in sentences]
    if not known:
        return table.new_zeros(0, table.shape[1]).to(dtype)
    starts = torch.tensor([0, *(len(row) for row in known)], device=table.device).cumsum(0)[:-1]
    flat = torch.tensor([i for row in known for i in row], dtype=torch.long, device=table.device)
    w = table.new_ones(len(flat)) if weights is None else weights.to(table)[flat]
    total = F.embedding_bag(flat, table, starts, mode="sum", per_sample_weights=w)  # (N, D)
    weight = F.embedding_bag(torch.arange(len(flat), device=table.device), w[:, None], starts, mode="sum")  # (N, 1)
    mean = total / weight.clamp_min(torch.finfo(table.dtype).tiny)
    return torch.where(weight > 0, mean, 0.0).to(dtype)  # eq. (6)


def _pooled(encoder: Encoder, ids: Tensor, mask: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Vectors (B, D) of a batch by name of the pooling."""
    deep = any(name != "pooler" and POOLINGS[name][1] != (-1,) for name in names)
    layers: Sequence[Tensor]
    pooled: Tensor | None = None
    if isinstance(encoder, Transformer):
        out = encoder(ids, mask=mask, output_layers=deep)
        layers, pooled = out.layers or [out.hidden_states], out.pooled
    elif isinstance(encoder, HFEncoder):
        made = encoder.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=deep)
        layers, pooled = (made.hidden_states if deep else [made.last_hidden_state]), made.get("pooler_output")
    else:
        given = encoder.encode(ids, mask=mask)[0] if isinstance(encoder, EncoderDecoder) else encoder(ids, mask)
        layers = [given] if isinstance(given, Tensor) else list(given)
    if deep and len(layers) < 2:
        wanted = next(name for name in names if name != "pooler" and POOLINGS[name][1] != (-1,))
        raise ValueError(f"{wanted} needs the hidden states of every layer and the encoder gives one; take last_avg")
    if "pooler" in names and pooled is None:
        raise ValueError("this encoder has no pooler; load it with heads=['pooler'] if the checkpoint has one, or cls")
    found = {} if pooled is None else {"pooler": pooled}
    for name in names:
        if name != "pooler":
            kind, taken = POOLINGS[name]
            found[name] = pool([layers[i] for i in taken], mask, kind)
    return found


@contextmanager
def _evaluating(encoder: Any) -> Iterator[None]:
    """Inside, every module of the encoder is in evaluation mode; on any exit each is as it was."""
    was = [(module, module.training) for module in encoder.modules()] if isinstance(encoder, nn.Module) else []
    try:
        for module, _ in was:
            module.training = False
        yield
    finally:
        for module, mode in was:
            module.training = mode


def _under(order: Sequence[int], lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Runs of texts, the longest first, whose padded size is at most the limit."""
    begin = 0
    while begin < len(order):
        count = max(1, limit // lengths[order[begin]])
        yield list(order[begin : begin + count])
        begin += count


def _device(encoder: Any) -> torch.device:
    parameter = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _width(encoder: Any) -> int:
    """Features of an encoder that has nothing to read."""
    return int(getattr(getattr(encoder, "config", None), "hidden_size", 0))
