"""A trained model folder, opened: evaluate it on a labelled file, predict on texts."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.data import grouped_items, read_items, read_texts
from danlu.data.atomic import write_whole
from danlu.data.errors import InputError
from danlu.tasks import get_task
from danlu.tasks.device import choose, inference
from danlu.tasks.encoder import Encoder, load_head
from danlu.tasks.folder import read_task, read_tensors
from danlu.tasks.spec import Spec
from danlu.tasks.training import drop_unusable, read_part

__all__ = ["Trained"]


class Trained:
    """A model of a folder, ready for use.

    Args:
        task: the task's object.
        model: with its weights, in evaluation mode.
        stored: task.json.
        device: resolved.
        precision: resolved.
    """

    def __init__(self, task: Any, model: Any, stored: dict[str, Any], device: str, precision: str) -> None:
        self.task, self.model, self.stored, self.device, self.precision = task, model, stored, device, precision

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "auto", precision: str = "auto", threads: int | None = None
    ) -> "Trained":
        """Open a folder that `danlu train` wrote.

        Args:
            folder: the model folder.
            device: "auto", "cpu", "cuda" or "mps".
            precision: "auto", "fp32" or "bf16".
            threads: of torch; None keeps its number.

        Returns:
            The opened model.

        Raises:
            InputError: not a model folder, a damaged file, a newer format.
        """
        folder = Path(folder)
        stored = read_task(folder)
        device, precision = choose(device, precision)
        if threads:
            torch.set_num_threads(threads)
        task = get_task(stored.get("task", ""))
        model = task.load(folder, stored)
        if isinstance(getattr(model, "encoder", None), Encoder):
            load_head(model, folder)
            return cls(task, model.to(device).eval(), stored, device, precision)
        weights = read_tensors(folder / "model.safetensors")
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{folder}/model.safetensors does not fit its task.json ({reason}); restore both from one copy"
            ) from None
        return cls(task, model.to(device).eval(), stored, device, precision)

    def evaluate(
        self,
        source: str,
        on_bad_rows: str = "fail",
        format: str = "auto",
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> dict[str, Any]:
        """Scores on a labelled file or named set.

        Args:
            source: file or name.
            on_bad_rows: "fail" or "skip".
            format: of the file.
            on_event: is told of progress.

        Returns:
            "data" (the part's card), "metrics", "task".

        Raises:
            InputError: the file cannot be used.
        """
        spec = Spec(task=self.task.name, train=source, on_bad_rows=on_bad_rows, format=format)
        part = read_part(spec, "test", source, self.stored.get("scheme", ""))
        if part.scheme != self.stored.get("scheme") and hasattr(self.task, "dev_scheme"):
            raise InputError(f"{source} holds {part.scheme}; task {self.task.name} is judged by {self.task.dev_scheme}")
        if part.scheme and part.scheme != self.stored.get("scheme"):
            raise InputError(
                f"{source} is tagged in {part.scheme}, the model in {self.stored.get('scheme')}; convert the file"
            )
        drop_unusable(self.task, self.model, part, on_bad_rows)
        on_event({"event": "phase", "text": f"scoring {len(part.examples):,} examples"})
        with inference(self.device, self.precision):
            scores = self.task.evaluate(self.model, part.examples, details=True)
        return {"kind": "evaluate", "task": self.task.name, "data": part.card(), "metrics": scores.metrics}

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the texts of one item; ("text",) where an item is a single text."""
        return tuple(getattr(self.task, "fields", ("text",)))

    def items(self, texts: Sequence[str] | None, source: str = "-") -> Iterator[Any]:
        """What to predict on, from the command line or a file.

        Args:
            texts: of an item of several texts one after the other; None reads `source`.
            source: a file, or "-" for standard input (`danlu.data.read_texts`, `danlu.data.read_items`).

        Returns:
            An iterator over items, as `predict` takes them.

        Raises:
            InputError: the texts do not make whole items, or the file cannot be used.
        """
        if self.fields == ("text",):
            return iter(texts) if texts is not None else read_texts(source)
        if texts is not None:
            return grouped_items(texts, self.fields)
        return read_items(source, self.fields, getattr(self.task, "field_names", ()))

    def predict(self, items: Iterable[Any], chunk: int = 256) -> Iterator[dict[str, Any]]:
        """One result for every item, in order; reads as it goes.

        Args:
            items: texts, or dicts with the texts of `fields`; empty texts give empty results.
            chunk: items taken together.

        Yields:
            The task's prediction of each item.
        """
        source = iter(items)
        while part := list(islice(source, chunk)):
            with inference(self.device, self.precision):
                results = self.task.predict(self.model, part)
            yield from results

    def write_vectors(self, items: Iterable[Any], path: Path, chunk: int = 256) -> dict[str, Any]:
        """Write the vector of every item, in order, as one float32 array; reads as it goes.

        Args:
            items: texts; of an empty one the row is nan.
            path: file to make; its name ends in .npy.
            chunk: items taken together.

        Returns:
            "file", "rows", "features" and "empty", the number of texts without anything to read.

        Raises:
            InputError: the task gives no vectors, the name has another ending, or there is such a file already.
        """
        if not hasattr(self.task, "vectors"):
            raise InputError(f"--out is for vectors, task {self.task.name} gives none; leave it out")
        check_vector_file(path)
        found: list[np.ndarray[Any, Any]] = []
        source = iter(items)
        while part := list(islice(source, chunk)):
            with inference(self.device, self.precision):
                found.append(self.task.vectors(self.model, part).numpy())
        if not found:
            raise InputError("there is no text to write vectors of; give texts or --input")
        array = np.concatenate(found)
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_whole(path, buffer.getvalue())
        empty = int(np.isnan(array).any(1).sum())
        return {"file": str(path), "rows": array.shape[0], "features": array.shape[1], "empty": empty}


def check_vector_file(path: Path) -> None:
    """Refuse, before any work, a file that cannot be made.

    Raises:
        InputError: another ending than .npy, the file is there already, or its folder is not.
    """
    if path.suffix != ".npy":
        raise InputError(f"--out {path}: vectors go to a NumPy file; give a name that ends in .npy")
    if path.exists():
        raise InputError(f"--out {path} is there already; give another name, or remove it")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} to write into; make it first")
