"""The plan of the house as data: which file stands in which room on which floor, and what a floor may use."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

FLOORS = {
    "math": 0,
    "nn": 1,
    "losses": 1,
    "optim": 1,
    "train": 1,
    "data": 1,
    "text": 2,
    "generative": 2,
    "probe": 2,
    "gallery": 2,
    "tasks": 3,
    "recipes": 4,
    "serve": 4,
    "cli": 5,
}
LIBRARY = 2  # floors up to this one are a library: tensors in, tensors out, four dependencies


def module_name(path: Path) -> str:
    """Dotted name of a file under src."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the package, sorted."""
    return {module_name(path): path for path in sorted((SRC / "danlu").rglob("*.py"))}


def room_of(module: str) -> str | None:
    """Room of a dotted name; None for danlu itself and for danlu.__main__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else None


def on_floors(lowest: int, highest: int) -> dict[str, Path]:
    """The modules that stand on the floors from lowest to highest."""
    rooms = {room for room, floor in FLOORS.items() if lowest <= floor <= highest}
    return {name: path for name, path in modules().items() if room_of(name) in rooms}


def assigned_all(tree: ast.Module) -> list[str]:
    """The literal list of `__all__`, or [] without one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def is_type_checking(node: ast.If) -> bool:
    """Whether an `if` is the block that only type checkers enter."""
    return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def walk_imports(
    node: ast.AST, top: bool = True, typing: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement below a node, with True where it runs when the file is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, top and not typing
        elif isinstance(child, ast.If) and is_type_checking(child):
            for statement in child.body:
                yield from walk_imports(ast.Module([statement], []), top, True)
            for statement in child.orelse:
                yield from walk_imports(ast.Module([statement], []), top, typing)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk_imports(child, top and not inside, typing)


def import_targets(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> list[str]:
    """Dotted names a statement asks for: `from a.b import c` gives a.b.c, relative ones are resolved."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
        base = ".".join([*parts, *([node.module] if node.module else [])])
    return [base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names]
