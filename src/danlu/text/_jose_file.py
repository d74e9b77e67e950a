"""The file of `danlu.text.jose`: all rows, the vocabulary and how far training came, as one safetensors file.

    tensors    vocabulary (uint8: a JSON list of words), counts, words, anchors (contexts, then documents), hits
    metadata   format, format_version, config (JSON), epoch, done, digest of the corpus ("" once it does not matter)

Source: own definition.
Shapes: V words, N documents, D features.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from danlu.data.atomic import write_whole
from danlu.data.errors import InputError
from danlu.text.jose_trainer import JoSEConfig, JoSETrainer

if TYPE_CHECKING:
    from danlu.text.jose import JoSE

__all__ = ["State", "read_state", "write_state"]

FORMAT, VERSION = "danlu-jose", 1


@dataclass(frozen=True)
class State:
    """What a file holds."""

    path: Path
    config: JoSEConfig
    words: list[str]
    counts: Tensor
    word_rows: Tensor
    anchors: Tensor
    hits: Tensor
    epoch: int
    done: int
    digest: str

    def into(self, trainer: JoSETrainer, digest: str) -> None:
        """Make a fresh trainer go on from here."""
        if self.config != trainer.config:
            other = [f.name for f in fields(JoSEConfig)
                     if getattr(self.config, f.name) != getattr(trainer.config, f.name)]  # fmt: skip
            raise ValueError(
                f"{self.path} was trained with other settings ({', '.join(other)}); give the same, or another file"
            )
        if self.digest != digest:
            raise ValueError(
                f"{self.path} was trained on other documents, or was saved without its state; give another file"
            )
        trainer.words, trainer.anchors = (t.to(trainer.words.device) for t in (self.word_rows, self.anchors))
        trainer.hits, trainer.epoch, trainer.done = self.hits, self.epoch, self.done


def write_state(path: Path, model: "JoSETrainer | JoSE", digest: str) -> None:
    """Write a trainer, or a model whose training is over; whole or not at all."""
    if isinstance(model, JoSETrainer):
        corpus = model.corpus
        names, counts, words, anchors = corpus.words, torch.from_numpy(corpus.counts), model.words, model.anchors
        hits, epoch, done = model.hits, model.epoch, model.done
    else:
        names, counts, words = model.words, model.counts, model.word_vectors
        anchors, hits = torch.cat([model.context_vectors, model.doc_vectors]), model.document_trained.long()
        epoch, done = model.config.epochs, 0
    letters = json.dumps(names).encode("ascii")
    tensors = {
        "vocabulary": torch.from_numpy(np.frombuffer(letters, np.uint8).copy()),
        "counts": counts, "words": words, "anchors": anchors, "hits": hits,
    }  # fmt: skip
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    meta = {"format": FORMAT, "format_version": str(VERSION), "config": json.dumps(asdict(model.config))}
    meta |= {"epoch": str(epoch), "done": str(done), "digest": digest}
    write_whole(path, save(tensors, meta))


def read_state(path: Path) -> State:
    """Read what `write_state` wrote, every part checked."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the file in it")
    try:
        with safe_open(path, "pt") as file:
            meta: dict[str, Any] = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise InputError(f"{path} is no file of JoSE vectors; give one that train_jose or JoSE.save wrote")
            if int(meta["format_version"]) > VERSION:
                raise InputError(
                    f"{path} has format {meta['format_version']}, this danlu reads up to {VERSION}; install a newer one"
                )
            names = ("vocabulary", "counts", "words", "anchors", "hits")
            letters, counts, words, anchors, hits = (file.get_tensor(name) for name in names)
        config = JoSEConfig(**json.loads(meta["config"]))
        vocabulary = json.loads(letters.numpy().tobytes())
        epoch, done, digest = int(meta["epoch"]), int(meta["done"]), meta["digest"]
        shapes = (counts.shape, words.shape, anchors.shape)
        if not isinstance(vocabulary, list) or not all(isinstance(word, str) for word in vocabulary):
            raise ValueError("the vocabulary is no list of words")
        if (words.dtype, anchors.dtype, hits.dtype) != (torch.float32, torch.float32, torch.int64):
            raise ValueError(f"numbers of types {words.dtype}, {anchors.dtype} and {hits.dtype}")
        v = len(vocabulary)
        if shapes != ((v,), (v, config.dim), (v + len(hits), config.dim)) or min(epoch, done) < 0 or done > len(hits):
            raise ValueError(f"parts of {shapes} for {v} words and {len(hits)} documents")
    except FileNotFoundError:
        raise InputError(f"no file {path}; give one that train_jose or JoSE.save wrote") from None
    except InputError:
        raise
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); restore it from a copy or train again") from None
    return State(path, config, vocabulary, counts, words, anchors, hits, epoch, done, digest)
