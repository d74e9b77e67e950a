r"""A model as a HuggingFace folder: config.json, model.safetensors and the vocabulary, all or nothing.

Names and layout are those of transformers' class for the family, so that `AutoModel.from_pretrained(folder)` opens it
and finds every weight; families that transformers lacks get model_type danlu-<family>, which it refuses by name. What
its classes hold beside learned weights is written for them: RoFormer's table of sines and cosines, one zero row of
segments for a BERT without. BERT, RoBERTa and ALBERT saved without a pooler get a random one from `AutoModel`, as ever.

The folder is written under another name beside its own, synced and renamed. Replacing one keeps its files that are
neither weights nor written anew, such as a model card.

Source: transformers' `save_pretrained`; kexue.fm/archives/8265 for the sines and cosines.
Shapes: N positions, D features.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from danlu.data.errors import InputError
from danlu.text._hf_checks import sines_then_cosines
from danlu.text._whole_model import whole_parameters
from danlu.text.hf_config import to_hf
from danlu.text.hf_names import hf_names
from danlu.text.slots import put
from danlu.text.transformer import EncoderDecoder, Transformer
from danlu.text.vocabulary import load_vocab, save_vocab

__all__ = ["save_hf"]

TOKENIZER_FILES = (
    "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt",
)  # fmt: skip
WEIGHTS = re.compile(  # the names that danlu and transformers give to weights, and no others
    r"(?:model|pytorch_model)(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)|(?:model\.safetensors|pytorch_model\.bin)"
    r"\.index\.json|tf_model\.h5|flax_model\.msgpack"
)


def save_hf(
    model: Transformer | EncoderDecoder,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    vocab: str | Path | Mapping[str, int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as a folder that transformers opens, and `load_hf`.

    Args:
        model: from `build_transformer` or a loader.
        folder: to be made; its parent must exist.
        dtype: of the stored weights; None: that of the parameters.
        vocab: token -> id, or a vocab.txt or other tokenizer file, or a folder with some; None: none is written.
        overwrite: replace a model folder that is there.

    Raises:
        InputError: the folder exists and overwrite is False, or it holds no config.json; no tokenizer file is there.
        ValueError: a parameter of the model has no place in such a folder, or it lacks some, as a copy of
            `for_inference` does; the vocabulary has ids beyond the table.

    >>> import tempfile
    >>> from danlu.text.config import TransformerConfig
    >>> from danlu.text.transformer import build_transformer
    >>> with tempfile.TemporaryDirectory() as place:
    ...     save_hf(build_transformer(TransformerConfig("bert", 2, 4, 1, 2, 8)), f"{place}/m", vocab={"a": 0, "b": 1})
    ...     sorted(os.listdir(f"{place}/m"))
    ['config.json', 'model.safetensors', 'vocab.txt']
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists():
        if not overwrite:
            raise InputError(f"{folder} exists; overwrite=True replaces its model, or give another folder")
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds no config.json, so it is no model folder; give another one")
    if not folder.parent.is_dir():
        raise InputError(f"{folder.parent} is no folder; make it first")
    tensors = _tensors(model, dtype)
    sources = _tokenizer_files(vocab, model.config.vocab_size)
    described = to_hf(model.config, model.heads)
    described["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        if isinstance(vocab, Mapping):
            save_vocab(partial / "vocab.txt", vocab)
        for source in sources:
            shutil.copyfile(source, partial / source.name)
        text = json.dumps(described, ensure_ascii=False, indent=2, allow_nan=False)
        (partial / "config.json").write_text(text + "\n", encoding="utf-8")
        _save_weights(tensors, partial / "model.safetensors", mode_of=partial / "config.json")
        if folder.exists():
            _keep_others(folder, partial)
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tensors(model: Transformer | EncoderDecoder, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Their names and tensors, in memory."""
    config, slots = model.config, hf_names(model.config, model.heads)
    ours = {name: value.cpu() for name, value in whole_parameters(model, "save_hf").items()}
    homeless = [name for name in ours if name not in slots]
    if homeless:
        raise ValueError(
            f"{len(homeless)} parameters have no place in a HuggingFace folder of {config.family}, {homeless[0]} "
            "first; save the model without what was added to it, and that beside"
        )
    if dtype is not None:
        ours = {name: value.to(dtype) for name, value in ours.items()}
    theirs = put(slots, ours)
    written = to_hf(config, model.heads)
    table = ours["embeddings.token.weight"]
    if written.get("type_vocab_size", 0) > config.segment_vocab_size:
        name = slots["embeddings.segment.weight"].name
        theirs[name] = table.new_zeros(1, config.embedding_dim)
    if written["model_type"] == "roformer":
        name = slots["embeddings.token.weight"].name.replace("embeddings.word_embeddings", "encoder.embed_positions")
        theirs[name] = sines_then_cosines(config.max_positions, config.key_dim).float()  # angles, not to be rounded
    return theirs


def _save_weights(tensors: dict[str, Tensor], path: Path, mode_of: Path) -> None:
    """Write them; what the system refuses comes as OSError, and the file may be read by whom another one may."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    shutil.copymode(mode_of, path)  # safetensors writes for the owner alone, whatever the umask


def _tokenizer_files(vocab: str | Path | Mapping[str, int] | None, rows: int) -> list[Path]:
    """Files to copy, after a look whether their ids fit the table."""
    if vocab is None:
        return []
    if isinstance(vocab, Mapping):
        _check_ids(max(vocab.values(), default=-1), rows, "the vocabulary")
        return []
    path = Path(vocab)
    files: Sequence[Path] = [path]
    if path.is_dir():
        files = [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
    if not files or not all(file.is_file() and file.name in TOKENIZER_FILES for file in files):
        raise InputError(f"{path} is none of the tokenizer files {', '.join(TOKENIZER_FILES)}, nor a folder with one")
    for file in files:
        if file.name == "vocab.txt":
            _check_ids(max(load_vocab(file).values()), rows, str(file))
    return list(files)


def _check_ids(largest: int, rows: int, what: str) -> None:
    if largest >= rows:
        raise ValueError(
            f"{what} has ids up to {largest}, the token table {rows} rows (0 to {rows - 1}); give the vocabulary that "
            "belongs to the model, cut by the same keep_tokens"
        )


def _keep_others(folder: Path, partial: Path) -> None:
    """Take over the files of a replaced folder that are not of the old model."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if (partial / path.name).exists():
                raise InputError(f"{path} is a folder, where a file of this name is to be written; rename it")
            shutil.copytree(path, partial / path.name, symlinks=True)
        elif not WEIGHTS.fullmatch(path.name) and not (partial / path.name).exists():
            shutil.copy2(path, partial / path.name, follow_symlinks=False)


def _publish(partial: Path, folder: Path) -> None:
    """Sync and rename; what stood there is removed only afterwards, and put back if the new folder cannot come."""
    for path in [*(path for path in partial.iterdir() if path.is_file()), partial]:
        _sync(path)
    old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Bring a file or a folder's entries onto the disk; not every system lets a folder be opened."""
    if path.is_file() or hasattr(os, "O_DIRECTORY"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
