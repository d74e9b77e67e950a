"""Models that come with danlu: folders of the package, opened by name and without a network.

Source: danlu's own; each folder holds a MODEL_CARD.md that says what it was made of.
Shapes: none.
"""

from pathlib import Path

__all__ = ["BUILTIN", "builtin_folder"]

BUILTIN = ("mini-zh",)


def builtin_folder(name: str) -> Path:
    """Where the files of a built-in model lie.

    Args:
        name: one of `BUILTIN`.

    Returns:
        A HuggingFace folder inside the package.

    Raises:
        ValueError: no such model.
        FileNotFoundError: the installation lacks the folder.

    >>> builtin_folder("mini-zh").name
    'mini_zh'
    """
    if name not in BUILTIN:
        raise ValueError(f"no built-in model {name!r}; there is {', '.join(BUILTIN)}")
    folder = Path(__file__).parent / name.replace("-", "_")
    if not (folder / "vocab.txt").is_file():
        raise FileNotFoundError(f"{folder} lacks the files of {name}; install danlu again")
    return folder
