"""danlu (丹炉): the methods of 科学空间 (kexue.fm) as parts for any PyTorch training loop.

Rooms: `math` (functions without parameters), `nn` (layers), `losses`, `optim`, `train` (change one step of a loop),
`data` (readers), `text` (encoders), `probe` (look into models), `gallery` (report pages), `tasks` (the application
behind the command `danlu`).
Importing danlu itself imports nothing else: a room is loaded when it is first named, and so is `load_model`, which
opens a model of any kind by its path.
"""

import importlib
from typing import Any

__all__ = [
    "__version__", "data", "gallery", "load_model", "losses", "math", "nn", "optim", "probe", "tasks", "text", "train",
]  # fmt: skip
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load_model":
        return importlib.import_module("danlu.text.load_model").load_model
    if name in __all__:
        return importlib.import_module(f"danlu.{name}")
    raise AttributeError(f"module 'danlu' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
