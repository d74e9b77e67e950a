"""Addresses of `capture`: "module.name:what", with `*`, `**` and `?` in the name, looked up in a model."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

KINDS = "out, in, in.ARGUMENT, attention, locals.VARIABLE"


@dataclass(frozen=True)
class Address:
    """One value of one module."""

    key: str
    module: nn.Module
    kind: str  # out, in, attention, locals
    name: str  # of an argument or a variable; "" for none

    def argument(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The argument called `name`; without a name the only argument, or all of them by name."""
        if not self.name and len(args) == 1 and not kwargs:
            return args[0]
        bound = inspect.signature(self.module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        rest = [p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        given = {k: v for k, v in bound.arguments.items() if k not in rest}
        for name in rest:
            given |= bound.arguments[name]
        return given[self.name] if self.name else given


def find(model: nn.Module, patterns: Sequence[str]) -> list[Address]:
    """All addresses that the patterns name in the model, in their order, none twice."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, Address] = {}
    for pattern in patterns:
        name, _, what = pattern.partition(":")
        kind, _, part = (what or "out").partition(".")
        if kind not in ("out", "in", "attention", "locals") or (part and kind in ("out", "attention")):
            raise ValueError(f"{pattern!r} asks for {what!r}; after the colon there may stand {KINDS}")
        if kind == "locals" and not part:
            raise ValueError(f"{pattern!r} names no variable; write locals.VARIABLE, a name inside forward")
        matching = [n for n in modules if re.fullmatch(_regex(name), n) and (n or name in ("", "**"))]
        if not matching:
            near = get_close_matches(name, modules, 3, 0.4) or [n for n in modules if n][:3]
            raise ValueError(
                f"no module is called {name!r}; near it: {', '.join(map(repr, near))} (of {len(modules)} names in "
                "dict(model.named_modules()))"
            )
        for n in matching:
            key = f"{n}:{kind}" + (f".{part}" if part else "")
            _check(modules[n], key, kind, part)
            found.setdefault(key, Address(key, modules[n], kind, part))
    return list(found.values())


def _regex(pattern: str) -> str:
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    return "".join({"**": ".*", "*": r"[^.]*", "?": r"[^.]"}.get(p, re.escape(p)) for p in parts)


def _check(module: nn.Module, key: str, kind: str, part: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise RuntimeError(f"{key!r} is a scripted module, whose inside Python does not see; capture the eager model")
    if kind == "in" and part:
        names = inspect.signature(module.forward).parameters
        if part not in names and not any(p.kind is p.VAR_KEYWORD for p in names.values()):
            raise ValueError(f"{key!r}: forward has no argument {part!r}; it takes {', '.join(names)}")
