"""Small files to train on: sentences of a made-up language of few words, drawn from a fixed stream."""

import random
from pathlib import Path

import pytest

WORDS = [
    "我们",
    "在",
    "北京",
    "学习",
    "数学",
    "喜欢",
    "的",
    "科学空间",
    "和",
    "上海",
    "大学",
    "一",
    "个",
    "新",
    "方法",
    "很",
    "好",
]


@pytest.fixture(scope="session")
def segmented(tmp_path_factory):
    """Three files of segmented lines: train, dev, test."""
    folder = tmp_path_factory.mktemp("segmented")
    stream = random.Random(5)
    for name, size in (("train", 60), ("dev", 20), ("test", 20)):
        lines = [" ".join(stream.choices(WORDS, k=stream.randint(1, 12))) for _ in range(size)]
        (folder / f"{name}.seg").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """Three CSV files of texts with the class of their commonest theme."""
    folder = tmp_path_factory.mktemp("labelled")
    stream = random.Random(6)
    themes = {"好": ["很好", "喜欢", "新方法"], "坏": ["不好", "讨厌", "旧方法"], "无": ["北京", "上海", "大学"]}
    for name, size in (("train", 90), ("dev", 30), ("test", 30)):
        rows = ["text,label"]
        for _ in range(size):
            label = stream.choice(list(themes))
            rows.append(f"{''.join(stream.choices(themes[label], k=stream.randint(1, 6)))},{label}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


SMALL = {"epochs": 2.0, "batch_size": 8, "save_every": 3, "max_len": 16, "context": 2, "bigram_dim": 8}


@pytest.fixture
def tag_spec(segmented: Path):
    """A run of a second on the segmented files."""
    from danlu.tasks.spec import Spec

    files = {role: str(segmented / f"{role}.seg") for role in ("train", "dev", "test")}
    return Spec(task="tag", model="dgcnn:2x16", set=dict(SMALL), threads=1, precision="fp32", device="cpu", **files)


@pytest.fixture
def classify_spec(labelled: Path):
    """A run of a second on the labelled files."""
    from danlu.tasks.spec import Spec

    files = {role: str(labelled / f"{role}.csv") for role in ("train", "dev", "test")}
    settings = {k: v for k, v in SMALL.items() if k != "context"}
    return Spec(
        task="classify",
        model="dgcnn:2x16",
        set={**settings, "epochs": 6.0},
        threads=1,
        precision="fp32",
        device="cpu",
        **files,
    )


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """A HuggingFace folder of a BERT of two layers that knows the characters above, some letters and word pieces."""
    import torch

    from danlu.text.config import TransformerConfig
    from danlu.text.save_hf import save_hf
    from danlu.text.tokenizer import Tokenizer
    from danlu.text.transformer import build_transformer

    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    characters = sorted({c for word in WORDS for c in word} | set("不讨厌旧，。"))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, "win", "##dow", "##s", "20", "##20", "a", "b"]
    tokenizer = Tokenizer({token: i for i, token in enumerate(tokens)})
    config = TransformerConfig.of(
        "bert",
        vocab_size=len(tokens),
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        max_positions=64,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(11)
    save_hf(build_transformer(config, ()), folder)
    torch.random.set_rng_state(state)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def with_encoder(tiny_encoder: Path):
    """A `Spec` that reads with the tiny encoder instead of the light network."""
    from dataclasses import replace

    def changed(spec, **settings):
        known = {k: v for k, v in spec.set.items() if k not in ("bigram_dim",)}
        return replace(spec, model=str(tiny_encoder), set={**known, "lr": 2e-3, **settings})

    return changed
