"""What a saved description may name. Importing a module and calling a function run code, so both need trust.

Without an opt-in a description may name

- layers and optimizers of torch (`torch.nn`, `torch.optim`) and of hvdspark,
- functions that only compute: of `torch.nn.functional`, `torch.nn.init`, `torch.special` and `math`, and of `torch`
  those that are methods of a tensor, too (`torch.relu`),
- subclasses of Module, Optimizer and `Inert`, enums, named tuples and dataclasses of any module that this process has
  imported already: nothing is imported for them, and their constructors are not called.

Everything else, such as a function of one's own, needs its package to be named: the user then says that importing it
and calling what it defines, with any arguments, is what they want.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import importlib
import inspect
import sys
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.errors import PersistenceError

TRUSTED_PACKAGES = "spark.hvdspark.trustedPackages"

_LAYERS = ("torch.nn", "torch.optim")
_OURS = "hvdspark"
_INERT_CONTAINERS = (argparse.Namespace, types.SimpleNamespace)
# Where functions that only compute are found, and the modules that these say they are from.
_PURE = {
    "torch.nn.functional": ("torch.nn.functional", "torch._C._nn", "torch"),
    "torch.nn.init": ("torch.nn.init",),
    "torch.special": ("torch._C._special", "torch.special"),
    "torch": ("torch", "torch._C"),
    "math": ("math",),
}
# Kinds of description that are an import path.
_NAMING = ("module", "object", "import", "partial", "enum", "named_tuple")
_KNOWN = {*sys.stdlib_module_names, "torch", "numpy", _OURS}
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


class Inert:
    """Base of classes whose instances are put together again from their attributes, without a call."""


_INERT = (nn.Module, torch.optim.Optimizer, Inert, enum.Enum)


@dataclass(frozen=True)
class Trust:
    """What the user has opted in to.

    Attributes:
        packages: whose modules may be imported, and whose classes and functions may be used, whatever they do.
        everything: what this process made itself is not asked for.
    """

    packages: tuple[str, ...] = ()
    everything: bool = False

    def find(self, path: str, kind: str = "", base: type = object) -> Any:
        """The class or function "module:qualified.name".

        Args:
            kind: what it has to be, in words.
            base: what it has to be a subclass of, where that is said.

        Raises:
            PersistenceError: it may not be named without an opt-in, it is not there, or it is something else.
        """
        module, _, name = path.partition(":")
        value, allowed = self._resolve(module, name)
        if kind and value is not None and not (isinstance(value, type) and issubclass(value, base)):
            raise PersistenceError(f"not a {kind}", value=path)
        if allowed:
            return value
        raise PersistenceError(
            "cannot import a part of the saved model that this session does not trust",
            value=path,
            hint=_hint(module, imported=value is not None),
        )

    def _resolve(self, module: str, name: str) -> tuple[Any, bool]:
        """(what has that name, or None where looking would run code, whether it may be used)."""
        if self.everything:
            return _import(module, name), True
        if _is_in(module, self.packages):
            value = _import(module, name)
            return value, _is_in(getattr(value, "__module__", None) or "", self.packages)  # not what it imports itself
        if (function := _pure_function(module, name)) is not None:
            return function, True
        if _is_in(module, (*_LAYERS, _OURS)) and not module.endswith("__main__"):
            value = _import(module, name)
        else:
            value = _look_up(module, name)
        own_name = (getattr(value, "__module__", None), getattr(value, "__qualname__", None)) == (module, name)
        return value, isinstance(value, type) and own_name and _is_inert(value)

    def may_construct(self, cls: type) -> bool:
        """Whether the constructor of a class that was found may be called with plain data."""
        return self.everything or _is_in(cls.__module__, (*_LAYERS, _OURS, *self.packages))


def packages_named(description: Any) -> set[str]:
    """Packages whose code a description (or several of them) names, but for Python's, torch's, numpy's and our own."""
    if isinstance(description, list):
        return {package for item in description for package in packages_named(item)}
    if not isinstance(description, dict):
        return set()
    named = packages_named(list(description.values()))
    paths = [path for kind in _NAMING if isinstance(path := description.get(kind), str)]
    return named | {path.partition(":")[0].partition(".")[0] for path in paths} - _KNOWN


def path_of(value: Any, where: str) -> str:
    """ "module:qualified.name" of a class or function, which `Trust.find` finds again.

    Raises:
        PersistenceError: it has no such name, or another object has it.
    """
    if isinstance(value, _FUNCTIONS):
        for home in _PURE:
            for short in (value.__name__, value.__name__.removeprefix("special_")):
                if _pure_function(home, short) is value:
                    return f"{home}:{short}"
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    named = isinstance(module, str) and isinstance(name, str) and module != "__main__" and "<" not in name
    if not named or _look_up(str(module), str(name)) is not value:
        raise PersistenceError(
            "it has no import path",
            value=repr(value)[:200],
            where=where,
            hint="define it at the top level of a module that the executors can import too (not in a notebook or "
            "script), or opt in to pickle with allowPickle=True (on a fitted model: setAllowPickle(True))",
        )
    return f"{module}:{name}"


def _hint(module: str, imported: bool) -> str:
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        return "models need nothing of this kind: whoever wrote this file may want to run a program"
    trusted = module if package == "torch" else package
    hint = f"if you trust this save and {trusted}, {opt_in(trusted)}"
    if not imported:
        hint += f"; a module's class is also taken from what is imported already: import {module} first"
    return hint


def opt_in(package: str) -> str:
    """How a user says so."""
    return f"set {TRUSTED_PACKAGES}={package} in the Spark session (TrainedModel.read: trust=Trust(({package!r},)))"


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _pure_function(module: str, name: str) -> Any:
    """A function that computes on numbers or tensors and does nothing else, or None."""
    value = vars(sys.modules[module]).get(name) if module in _PURE and module in sys.modules else None
    if not isinstance(value, _FUNCTIONS) or (value.__module__ or module) not in _PURE[module]:
        return None
    if module == "torch" and not (isinstance(value, types.BuiltinFunctionType) and hasattr(Tensor, name)):
        return None  # torch.load and torch.from_file are no methods of a tensor
    return value


def _is_inert(cls: type) -> bool:
    """Whether objects of a class can be made, from plain data and without its constructor, and do nothing by that."""
    if _is_in(cls.__module__, _LAYERS) or cls in _INERT_CONTAINERS:
        return True
    if _is_in(cls.__module__, ("torch",)):  # torch.fx and torch.jit make code of data
        return False
    if issubclass(cls, _INERT):
        return True
    is_data = dataclasses.is_dataclass(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    return is_data and not any("__call__" in vars(base) or "__setstate__" in vars(base) for base in cls.__mro__)


def _look_up(module: str, name: str) -> Any:
    """What is there without running anything: no import, no module's or class's own __getattr__. None if nothing is."""
    try:
        return functools.reduce(inspect.getattr_static, name.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        return None


def _import(module: str, name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise PersistenceError(
            "cannot import a part of the saved model",
            value=f"{module}:{name}",
            hint=f"install or add the module it is in: {error}",
        ) from error
