"""danlu (丹炉): the methods of 科学空间 (kexue.fm) as parts for any PyTorch training loop.

Rooms: `math` (functions without parameters), `nn` (layers), `losses`, `optim`, `train` (change one step of a loop),
`data` (readers), `text` (encoders), `probe` (look into models), `gallery` (report pages), `tasks` (the application
behind the command `danlu`).
Importing danlu itself imports nothing else: a room is loaded when it is first named.
"""

import importlib
from types import ModuleType

__all__ = ["__version__", "data", "gallery", "losses", "math", "nn", "optim", "probe", "tasks", "text", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"danlu.{name}")
    raise AttributeError(f"module 'danlu' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
