"""What an ablation compares: its arms and seeds, the trials they make, and which of them an earlier run has stored."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import danlu
from danlu.data.errors import InputError
from danlu.tasks.folder import digest
from danlu.tasks.statistics import MIN_SEEDS
from danlu.tasks.tricks import parse

__all__ = ["FILES", "Arm", "Design", "Trial", "plan", "stored_trials", "trials_of", "version_of"]

FILES = ("train", "dev", "test")  # keys of a spec whose values may name files


@dataclass(frozen=True)
class Arm:
    """One column of the comparison: its name, the tricks it switches on, its expected time against the baseline."""

    name: str
    tricks: tuple[str, ...] = ()
    cost: float = 1.0


@dataclass(frozen=True)
class Design:
    """What is going to be compared: the arms (baseline first), the seeds of every arm, what the reader must know."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()


def plan(spec: Mapping[str, Any], tricks: Sequence[str], seeds: int | Sequence[int]) -> Design:
    """The arms of an ablation: baseline, each trick alone, all together.

    Two values of one slot (`head:crf` and `head:memm`) are two arms, but cannot be switched on together: the last arm
    takes the first of each slot, is then called "first of each" and a note says what it leaves out. With one slot only
    there is nothing to put together and no such arm.

    Args:
        spec: the run all arms share; its "with" (or "tricks") are switched on in every arm, "seed" is the first seed.
        tricks: NAME or NAME:VALUE, each once.
        seeds: how many (counting up from the spec's seed), or the seeds themselves.

    Returns:
        The `Design`.

    Raises:
        InputError: no trick, one given twice, an unknown one, or seeds that are none or not distinct.

    >>> [arm.name for arm in plan({"task": "tag"}, ["fgm", "ema"], 3).arms]
    ['baseline', 'fgm', 'ema', 'all']
    """
    if not tricks:
        raise InputError("nothing to compare: give tricks, for example --with fgm,ema; `danlu list tricks` shows them")
    if len(set(tricks)) < len(tricks):
        twice = next(trick for trick in tricks if list(tricks).count(trick) > 1)
        raise InputError(f"trick {twice} is given twice; give each once")
    first = int(spec.get("seed") or 0)
    chosen = tuple(range(first, first + seeds)) if isinstance(seeds, int) else tuple(int(s) for s in seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"seeds must be one or more different whole numbers, got {seeds}; 5 make a usable verdict")
    shared = tuple(spec.get("with") or spec.get("tricks") or ())
    arms, notes, slots, left_out = [Arm("baseline", shared)], [], dict[str, str](), []
    cost = 1.0
    for text in tricks:
        trick = parse(text, spec.get("task"))
        arms.append(Arm(text, (*shared, text), _cost(trick.cost)))
        if trick.slot in slots:
            left_out.append(f"{text} (a rival of {slots[trick.slot]})")
        else:
            slots[trick.slot] = text
            cost *= arms[-1].cost
    if len(slots) > 1:
        name = "first of each" if left_out else "all"
        arms.append(Arm(name, (*shared, *slots.values()), cost))
        if left_out:
            notes.append(f'The arm "{name}" is {" + ".join(slots.values())}; it leaves out {", ".join(left_out)}.')
    if len(chosen) < MIN_SEEDS:
        notes.append(f"With fewer than {MIN_SEEDS} seeds no verdict is given; 5 or more are advised.")
    return Design(tuple(arms), chosen, tuple(notes))


@dataclass(frozen=True)
class Trial:
    """One run of one arm: its seed, its specification, and what its numbers depend on, with the hash of that."""

    arm: Arm
    seed: int
    spec: dict[str, Any]
    identity: dict[str, Any]
    key: str


def trials_of(spec: Mapping[str, Any], design: Design, threads: int) -> dict[str, Trial]:
    """Name -> trial, all arms of the first seed first: whoever looks early sees every arm."""
    contents = {key: digest(Path(str(spec[key]))) for key in FILES if spec.get(key)}
    versions = {"danlu": danlu.__version__, "torch": version_of("torch")}
    trials = {}
    for seed in design.seeds:
        for arm in design.arms:
            own = {**spec, "with": list(arm.tricks), "seed": seed, "threads": threads}
            if "tricks" in spec:
                own["tricks"] = list(arm.tricks)
            own.setdefault("evaluate_on", "test" if spec.get("test") else "half of dev")
            identity = json.loads(json.dumps({"spec": own, "contents": contents, "versions": versions}))
            key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
            trials[f"{quote(arm.name, safe=':').replace(':', '=')}-{seed}"] = Trial(arm, seed, own, identity, key)
    return trials


def stored_trials(folder: Path, trials: Mapping[str, Trial]) -> dict[str, dict[str, Any]]:
    """The trials an earlier run left, after checking that they are of this plan; a damaged one is run again."""
    stored = {}
    for path in sorted(folder.glob("*.json")):
        name = path.name.removesuffix(".json")
        try:
            answer = json.loads(path.read_bytes())
            key, identity = answer["key"], answer["identity"]
        except (ValueError, TypeError, KeyError):
            continue
        if name not in trials or key != trials[name].key:
            known = name in trials
            reason = _what_differs(identity, trials[name].identity) if known else f"trial {name} is not in this plan"
            raise InputError(
                f"{folder.parent} holds trials of other settings ({reason}); give the settings of the first run to go "
                "on, or --overwrite to start again"
            )
        stored[name] = answer
    return stored


def _what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    for part, label in (("spec", ""), ("contents", "content of the file given as --"), ("versions", "version of ")):
        old, new = before.get(part, {}), now.get(part, {})
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                if part == "contents":
                    return f"{label}{key} changed"
                return f"{label}{key} was {old.get(key)!r}, is now {new.get(key)!r}"
    return "the stored trial is of another kind"


def version_of(package: str) -> str:
    """The version that is installed, in words."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cost(text: str) -> float:
    """The (larger) factor in "0.8 to 1.0 x time"; 1 where the card is silent."""
    factor = re.search(r"(\d+(?:\.\d+)?) x time", text)
    return float(factor[1]) if factor else 1.0
