r"""What a file or folder holds, before anybody works with it: kind, family, sizes, heads, and what would load where.

    tf       `inspect_tf`: names, shapes and the configuration, no weight is read                                (1)
    hf       opened by `load_hf`; where it refuses, the table of its refusal                                     (2)
    keras    with the family given opened by `load_keras_weights`, else the weights listed                       (3)

Source: danlu's own rules.
Shapes: none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.text._tf_plan import plan
from danlu.text.config import TransformerConfig
from danlu.text.google_config import find_config
from danlu.text.keras_file import open_keras_weights
from danlu.text.load_model import load_model, model_kind
from danlu.text.load_report import LoadError, LoadReport, match
from danlu.text.load_tf import inspect_tf
from danlu.text.tf_checkpoint import open_checkpoint
from danlu.text.vocabulary import load_vocab

__all__ = ["Inspection", "inspect_model"]

_SIZES = (
    "vocab_size", "embedding_size", "hidden_size", "num_layers", "num_decoder_layers", "num_heads", "head_size",
    "key_size", "intermediate_size", "max_positions", "segment_vocab_size", "num_buckets",
)  # fmt: skip


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Args:
        kind: "hf", "tf" or "keras".
        source: the folder, the checkpoint's prefix or the file.
        layout: of a TensorFlow checkpoint, whose code wrote it; else None.
        family: a key of `FAMILIES`, None where it is not known.
        candidates: all families that the variables fit.
        reasons: observations, one sentence each.
        sizes: fields of `TransformerConfig`.
        assumed: those of the sizes that are usual, not read.
        heads: heads whose weights are there.
        vocabulary: name of the vocabulary beside, its tokens and the rows of the table; None: there is no vocab.txt.
        report: the table of what loads where.
        damage: data files that are missing or too short, one sentence each; such a model cannot be loaded.
    """

    kind: str
    source: str
    layout: str | None
    family: str | None
    candidates: tuple[str, ...]
    reasons: tuple[str, ...]
    sizes: dict[str, Any]
    assumed: dict[str, int]
    heads: tuple[str, ...]
    vocabulary: dict[str, Any] | None
    report: LoadReport
    damage: tuple[str, ...] = ()

    def record(self, variables: bool = False) -> dict[str, Any]:
        """The same for JSON.

        Args:
            variables: also every row of the table.
        """
        told = {name: value for name, value in vars(self).items() if name not in ("report", "damage")}
        told |= {"counts": self.report.counts(), "problems": self.problems(), "notes": self.report.notes}
        if variables:
            told["variables"] = [asdict(row) for row in self.report.rows]
            told["training_state"] = self.report.training_state
        return told

    def problems(self) -> list[str]:
        """What stands in the way of loading, damage first."""
        return [*self.damage, *self.report.problems()]


def inspect_model(path: str | Path, family: str | None = None) -> Inspection:
    """What a model's files hold and what `load_model` would read.

    Args:
        path: as of `load_model`.
        family: a key of `FAMILIES`, where the files do not tell it; None: as they say.

    Returns:
        `Inspection`; weights that do not fit are told in its report, they are no error here.

    Raises:
        InputError: there is no model, a damaged file, or a configuration that cannot be used.

    >>> import tempfile
    >>> from danlu.text.config import TransformerConfig
    >>> from danlu.text.load_tf import save_tf
    >>> from danlu.text.transformer import build_transformer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tf(build_transformer(TransformerConfig("bert", 9, 4, 1, 2, 8)), f"{folder}/bert_model.ckpt")
    ...     found = inspect_model(folder)
    >>> found.family, found.sizes["hidden_size"], found.report.counts()
    ('bert', 4, {'matched': 21})
    """
    if not str(path):
        raise InputError("the empty name is no path; give a folder or file of a model, . for the current folder")
    kind = model_kind(path)
    try:
        return {"tf": _tf, "hf": _hf, "keras": _keras}[kind](Path(path), family)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _tf(path: Path, family: str | None) -> Inspection:
    found, report = inspect_tf(path, **({} if family is None else {"family": family}))
    with open_checkpoint(path) as checkpoint:
        prefix, damage = checkpoint.prefix, tuple(checkpoint.missing_bytes())
        try:
            config = plan(checkpoint, {}, family=family, assume=True).config
        except InputError:  # of no family, or of several; the report says it
            config = None
    sizes = {**({} if config is None else _sizes(config)), **found.sizes}
    assumed = {name: value for name, value in found.assumed.items() if find_config(prefix) is None}
    return Inspection(
        "tf", str(prefix), found.layout, found.family if config is None else config.family, found.candidates,
        found.reasons, {name: sizes[name] for name in _SIZES if name in sizes}, assumed, found.heads,
        _vocabulary(prefix.parent, found.sizes.get("vocab_size")), report, damage,
    )  # fmt: skip


def _hf(path: Path, family: str | None) -> Inspection:
    return _opened("hf", path, path, {} if family is None else {"family": family}, family)


def _keras(path: Path, family: str | None) -> Inspection:
    if family is not None and find_config(path) is not None:
        return _opened("keras", path, path.parent, {"family": family}, family)
    with open_keras_weights(path) as file:
        report = match({}, {}, dict(file.shapes), source=str(path))
    wanted = "no configuration lies beside it" if family is not None else "the file does not say its family: --family"
    return Inspection(
        "keras", str(path), None, family, (), (wanted,), {}, {}, (), _vocabulary(path.parent, None), report
    )


def _opened(kind: str, path: Path, folder: Path, options: dict[str, Any], family: str | None) -> Inspection:
    """By loading; a refusal with a table is shown, not raised."""
    try:
        model = load_model(path, **options)
    except LoadError as error:
        error.report.notes.append(str(error))
        return Inspection(kind, str(path), None, family, (), (), {}, {}, (), _vocabulary(folder, None), error.report)
    config = model.config
    report: LoadReport = model.load_report  # type: ignore[assignment]
    return Inspection(
        kind, str(path), None, config.family, (config.family,), (), _sizes(config), {}, model.heads,
        _vocabulary(folder, config.vocab_size), report,
    )  # fmt: skip


def _sizes(config: TransformerConfig) -> dict[str, Any]:
    """The sizes that mean something for the family."""
    traits = config.traits
    idle = {"max_positions"} if traits.positions != "learned" else set()
    idle |= {"num_buckets"} if traits.positions != "buckets" else set()
    idle |= {"segment_vocab_size"} if not traits.segments else set()
    return {name: getattr(config, name) for name in _SIZES if name not in idle and getattr(config, name) is not None}


def _vocabulary(folder: Path, rows: int | None) -> dict[str, Any] | None:
    place = folder / "vocab.txt"
    if not place.is_file():
        return None
    return {"file": place.name, "tokens": max(load_vocab(place).values()) + 1, "rows": rows}
