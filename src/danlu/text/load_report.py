r"""Loading weights with a report: one table of what came from where, and a refusal of what would be silently wrong.

    matched       a parameter and a variable of the same shape, read
    edited        a variable that is read and then changed to the parameter's shape (vocabulary surgery, resizing)
    fresh         a parameter that no file of this kind holds; it keeps its first values (conditional norms)
    missing       a parameter without a variable                                     refused
    mismatched    a parameter and a variable of another shape                        refused
    unused        a variable that no parameter reads                                 refused where it is essential

What is refused, and whether a variable is essential, is decided before the first value is read, so a refusal costs
nothing and leaves the model as it was. `fill` is the one place where any file becomes a model's weights; the readers
of TensorFlow, HuggingFace and Keras files bring their name tables (`danlu.text.slots`) and a function that reads.

Source: danlu's own rules.
Shapes: any; a slot says how their array becomes ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from danlu.data.errors import InputError
from danlu.text.slots import Slot, take

__all__ = ["LoadError", "LoadReport", "Row", "fill", "match", "weights_dtype"]

Shape = tuple[int, ...]
STATUSES = ("matched", "edited", "fresh", "missing", "mismatched", "unused")
_SHOWN = 12  # rows of one status in the table
_DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64,
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: a parameter, a variable, or a pair; `refused` where it alone stops the loading."""

    ours: str | None
    theirs: str | None
    status: str
    ours_shape: Shape | None = None
    theirs_shape: Shape | None = None
    refused: bool = False


class LoadError(InputError):
    """Weights that do not fit the model; `report` holds the whole table."""

    def __init__(self, message: str, report: LoadReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass
class LoadReport:
    """What came from where; `str(report)` is the table, `rows` holds every line of it.

    Args:
        source: the file, as messages name it.
        rows: parameters in the model's order, then variables that nobody read.
        training_state: variables of optimizers and savers, which are no weights.
        notes: remarks in words: a family that was guessed, keys of the configuration that were not understood.
        extra: weights of the user's own layers on top, by name, where the reader keeps them.
    """

    source: str
    rows: list[Row] = field(default_factory=list)
    training_state: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)

    def of(self, status: str) -> list[Row]:
        """Rows of one status.

        Args:
            status: one of those above.

        Raises:
            ValueError: there is no such status.

        >>> LoadReport("a.ckpt", [Row("x", None, "missing")]).of("missing")[0].ours
        'x'
        """
        if status not in STATUSES:
            raise ValueError(f"a row is {', '.join(STATUSES)}; got {status!r}")
        return [row for row in self.rows if row.status == status]

    def counts(self) -> dict[str, int]:
        """Rows per status, those without any left out, and the variables of training state.

        >>> LoadReport("a.ckpt", [Row("x", "y", "matched")], ["global_step"]).counts()
        {'matched': 1, 'training state': 1}
        """
        counts = {status: len(self.of(status)) for status in STATUSES}
        counts["training state"] = len(self.training_state)
        return {status: count for status, count in counts.items() if count}

    def problems(self) -> list[str]:
        """One sentence for each kind of problem, [] where the weights are whole.

        >>> LoadReport("a.ckpt", [Row("x", None, "missing", (2,), None, True)]).problems()
        ['1 weight of the model is not in a.ckpt: x (2)']
        """
        told = []
        missing = [f"{row.ours} {_shape(row.ours_shape)}" for row in self.of("missing") if row.refused]
        if missing:
            verb = "weight of the model is" if len(missing) == 1 else "weights of the model are"
            told.append(f"{len(missing)} {verb} not in {self.source}: {_some(missing)}")
        other = [
            f"{row.ours} {_shape(row.ours_shape)} against {row.theirs} {_shape(row.theirs_shape)}"
            for row in self.of("mismatched")
            if row.refused
        ]
        if other:
            verb = "weight has" if len(other) == 1 else "weights have"
            told.append(f"{len(other)} {verb} another shape in {self.source}: {_some(other)}")
        unused = [f"{row.theirs} {_shape(row.theirs_shape)}" for row in self.of("unused") if row.refused]
        if unused:
            verb = "weight that the model has" if len(unused) == 1 else "weights that the model has"
            told.append(f"{self.source} holds {len(unused)} {verb} no place for: {_some(unused)}")
        return told

    def __str__(self) -> str:
        head = ", ".join(f"{count} {status}" for status, count in self.counts().items()) or "nothing"
        lines = [f"{self.source}: {head}", *(f"note: {note}" for note in self.notes)]
        cells = [("", "model", "shape", "file", "shape")]
        for status in STATUSES:
            rows = self.of(status)
            for row in rows[:_SHOWN]:
                cells.append(
                    (status + "!" * row.refused, row.ours or "-", _shape(row.ours_shape), row.theirs or "-",
                     _shape(row.theirs_shape))
                )  # fmt: skip
            if len(rows) > _SHOWN:
                cells.append((status, f"... {len(rows) - _SHOWN} more", "", "", ""))
        if self.training_state:
            cells.append(("training state", "-", "", _some(self.training_state, 1), ""))
        widths = [max(len(row[k]) for row in cells) for k in range(5)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([*lines, *(line.rstrip() for line in table)])


def match(
    shapes: Mapping[str, Shape],
    slots: Mapping[str, Slot],
    available: Mapping[str, Shape],
    *,
    source: str,
    edited: Iterable[str] = (),
    fresh: Callable[[str], bool] | None = None,
    essential: Callable[[str], bool] | None = None,
    training: Callable[[str], bool] | None = None,
) -> LoadReport:
    """The report of loading `available` variables into parameters of `shapes`, without reading any.

    Args:
        shapes: shape by name of each parameter.
        slots: where each parameter lies in the file; parameters without a slot are missing.
        available: shape by name of each variable in the file.
        source: the file, for messages.
        edited: parameters whose variable may have another shape, since it is changed after reading.
        fresh: of a parameter's name, whether no file of this kind holds it.
        essential: of a variable's name, whether it may not be left unread.
        training: of a variable's name, whether it is state of an optimizer or a saver.

    Returns:
        `LoadReport`; `problems()` tells whether it may be loaded.

    >>> print(match({"w": (3, 2)}, {"w": Slot("kernel", transpose=True)}, {"kernel": (2, 3)}, source="a.ckpt"))
    a.ckpt: 1 matched
             model  shape   file    shape
    matched  w      (3, 2)  kernel  (2, 3)
    """
    report, edited, read = LoadReport(source), set(edited), set()
    for name, shape in shapes.items():
        slot = slots.get(name)
        if slot is None or slot.name not in available:
            new = fresh is not None and fresh(name)
            theirs = None if slot is None else slot.name
            report.rows.append(Row(name, theirs, "fresh" if new else "missing", shape, None, not new))
            continue
        read.add(slot.name)
        stored = available[slot.name]
        ours = _after(slot, stored)
        status = "edited" if name in edited and ours is not None else "matched" if ours == shape else "mismatched"
        report.rows.append(Row(name, slot.name, status, shape, stored, status == "mismatched"))
    for name, stored in available.items():
        if name in read:
            continue
        if training is not None and training(name):
            report.training_state.append(name)
        else:
            report.rows.append(Row(None, name, "unused", None, stored, essential is not None and essential(name)))
    return report


@torch.no_grad()
def fill(
    model: nn.Module,
    slots: Mapping[str, Slot],
    read: Callable[[str], Tensor],
    available: Mapping[str, Shape],
    *,
    source: str,
    edits: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    fresh: Callable[[str], bool] | None = None,
    essential: Callable[[str], bool] | None = None,
    training: Callable[[str], bool] | None = None,
    allow_missing: bool = False,
    hint: str = "",
) -> LoadReport:
    """Copy a file's variables into a model's parameters, or refuse and leave the model as it was.

    Args:
        model: its parameters lie in memory or on the meta device, in the type they shall have; those on the meta
            device come to life on the CPU.
        slots: where each parameter lies in the file.
        read: of a variable's name, its values; a view of a mapped file is best, it is copied once.
        available: shape by name of each variable in the file.
        source: the file, for messages.
        edits: by parameter, what changes the values after reading; such a variable may have another shape.
        fresh: of a parameter's name, whether no file of this kind holds it.
        essential: of a variable's name, whether it may not be left unread.
        training: of a variable's name, whether it is state of an optimizer or a saver.
        allow_missing: parameters without a variable keep the values they have, and essential variables may stay
            unread; another shape is still refused.
        hint: how to mend it, the end of the message when the weights are refused.

    Returns:
        `LoadReport`, also kept as `model.load_report`.

    Raises:
        LoadError: a weight is missing, has another shape or is essential and unread; `report` holds the table.

    >>> layer = nn.Linear(1, 2, bias=False)
    >>> kernel = torch.tensor([[1.0, 2.0]])
    >>> report = fill(layer, {"weight": Slot("k", True)}, lambda name: kernel, {"k": (1, 2)}, source="f")
    >>> layer.weight.tolist(), report.counts()
    ([[1.0], [2.0]], {'matched': 1})
    """
    edits = edits or {}
    parameters = dict(model.named_parameters())
    report = match(
        {name: tuple(parameter.shape) for name, parameter in parameters.items()}, slots, available,
        source=source, edited=edits, fresh=fresh, essential=essential, training=training,
    )  # fmt: skip
    refused = [row for row in report.rows if row.refused and (row.status == "mismatched" or not allow_missing)]
    if refused:
        whole = LoadReport(source, refused)
        raise LoadError("; ".join([*whole.problems(), *([hint] if hint else [])]), report)
    for row in report.rows:
        if row.ours is None or row.status not in ("matched", "edited"):
            continue
        values = take(slots[row.ours], read(str(row.theirs)))
        if row.ours in edits:
            values = edits[row.ours](values)
        parameter = parameters[row.ours]
        if values.shape != parameter.shape:
            raise LoadError(
                f"{row.ours} needs shape {_shape(tuple(parameter.shape))}, {row.theirs} gives "
                f"{_shape(tuple(values.shape))}; the configuration does not fit {source}",
                report,
            )
        if parameter.is_meta:
            path, _, last = row.ours.rpartition(".")
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)  # empty_like would bring in torch's compiler
            parameter = nn.Parameter(empty, parameter.requires_grad)
            setattr(model.get_submodule(path), last, parameter)
        parameter.copy_(values)
    model.load_report = report  # type: ignore[assignment]
    return report


def weights_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The type that a loader gives its parameters.

    Args:
        dtype: float32, bfloat16, float16 or float64, of torch or by name; None: float32.

    Returns:
        The type of torch.

    Raises:
        InputError: any other.

    >>> weights_dtype("bf16"), weights_dtype(None)
    (torch.bfloat16, torch.float32)
    """
    found = torch.float32 if dtype is None else _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in _DTYPES.values():
        raise InputError(f"dtype must be float32, bfloat16, float16 or float64, of torch or by name; got {dtype!r}")
    return found


def _after(slot: Slot, shape: Shape) -> Shape | None:
    """The shape that `take` makes of theirs, None where it refuses."""
    try:
        return tuple(take(slot, torch.empty(shape, device="meta")).shape)
    except (ValueError, RuntimeError):
        return None


def _shape(shape: Shape | None) -> str:
    return "" if shape is None else "(" + ", ".join(map(str, shape)) + ")"


def _some(names: list[str], count: int = 3) -> str:
    """The first of a list, and how many there are beside."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")
