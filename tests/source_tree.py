"""The modules of hvdspark as the rules of docs/layers.md see them: read off the source, nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RULES = (ROOT / "docs" / "layers.md").read_text()


def block(kind: str) -> dict[str, str]:
    """The lines "name: text" of a block of docs/layers.md; indented lines go on with the one above."""
    (text,) = re.findall(rf"^```{kind}\n(.*?)^```$", RULES, re.MULTILINE | re.DOTALL)
    lines = text.replace("\n ", " ").splitlines()
    return dict(line.split(":", 1) for line in lines)


def layer_numbers(order: str) -> dict[str, int]:
    """ "a b < c" -> {"a": 0, "b": 0, "c": 1}"""
    return {part: number for number, parts in enumerate(order.split("<")) for part in parts.split()}


# By package: the number of the layer of each part.
LAYERS = {package: layer_numbers(order) for package, order in block("layers").items()}
CONFINED = {package: set(parts.split()) for package, parts in block("confined").items()}


@dataclass(frozen=True)
class Module:
    """One file of hvdspark.

    Attributes:
        name: as it is imported, e.g. "hvdspark.estimators.ctr".
    """

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def part_of(self, package: str) -> str:
        """Which part of a package it is: "data" of hvdspark, "feed" of hvdspark.data; "" for the package itself."""
        return self.name[len(package) + 1 :].split(".")[0]

    @cached_property
    def private(self) -> set[str]:
        """Names with one leading underscore that it defines or assigns, of whatever."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
        return {name for name in found if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def sources(*folders: str) -> list[Path]:
    """Python files of these folders, each once (hvdspark/estimators is the same folder as estimators)."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if (ROOT / "hvdspark" / "estimators") not in path.parents]


def modules() -> dict[str, Module]:
    """All of hvdspark and estimators, by name."""
    found = {}
    for path in sources("hvdspark", "estimators"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "hvdspark" else ("hvdspark", *parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path)
    return found


def imported(source: str | ast.Module) -> Iterator[str]:
    """Every module that the text imports anywhere: in functions, under TYPE_CHECKING, by import_module("...")."""
    for node in ast.walk(ast.parse(source) if isinstance(source, str) else source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: imports are absolute here"
            # The name may be a module of the package or something inside it; both spellings are checked.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)


def module_of(name: str, known: Mapping[str, Module]) -> str | None:
    """The module that an imported name is, or is in; None where it is none of hvdspark's."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def circles(known: Mapping[str, Module]) -> list[list[str]]:
    """Modules that import each other, in whatever many steps; a package's `__init__` counts where it is named."""
    imports = {
        name: {target for text in imported(module.tree) if (target := module_of(text, known)) and target != name}
        for name, module in known.items()
    }
    # What is imported by nobody, or imports nothing, is in no circle; what is left when all such are gone, is.
    left = set(known)
    while True:
        targets = {target for name in left for target in imports[name] & left}
        ends = {name for name in left if name not in targets or not imports[name] & left}
        if not ends:
            return [[name, *sorted(imports[name] & left)] for name in sorted(left)]
        left -= ends


def uses_of_private_names(module: Module, known: Mapping[str, Module]) -> Iterator[str]:
    """Names with a leading underscore that a module has from another one of hvdspark, and where."""
    others = {name for other in known.values() if other is not module for name in other.private} - module.private
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hvdspark"):
            yield from (f"line {node.lineno}: {alias.name}" for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and node.attr in others and not _is_own(node.value):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def _is_own(value: ast.expr) -> bool:
    """self, cls or super(): what a class has from its bases."""
    name = value.func if isinstance(value, ast.Call) else value
    return isinstance(name, ast.Name) and name.id in ("self", "cls", "super")


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function and method."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1
