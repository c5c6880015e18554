"""Python objects as JSON: modules, losses, optimizers, callbacks and what they hold.

A module is described by its class and its whole state: what is in its `__dict__`, the layers below it, their hooks and
flags. Nothing is left to its constructor, so it does not matter whether arguments were kept, or what was changed since.
Classes of hvdspark are described by their constructor arguments instead: their attributes may change with the version.

What has a name (classes, functions) is described by that. Everything that is described once and met again is a
reference, so that what is one object stays one object. What has no description is refused, with its place.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import inspect
import json
import logging
import pathlib
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize

from hvdspark.artifact.trust import path_of
from hvdspark.errors import PersistenceError

Description = dict[str, Any] | list[Any] | str | int | float | bool | None

STRUCTURE = frozenset(vars(nn.Module()))
# Hooks, and the sets of hook ids that say how they are called.
HOOKS: dict[str, tuple[str, ...]] = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_backward_hooks": (),
    "_backward_pre_hooks": (),
    "_state_dict_hooks": (),
    "_state_dict_pre_hooks": (),
    "_load_state_dict_pre_hooks": (),
    "_load_state_dict_post_hooks": (),
}
FACTORIES: dict[Any, str] = {kind: f"defaultdict_{kind.__name__}" for kind in (dict, list, set, int, float)}
_TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format)
# Named otherwise in constructors; where weights live, and in which type, their file says.
_IGNORED_ARGUMENTS = ("self", "device", "dtype")
_OPT_IN = "opt in to pickle with allowPickle=True (on a fitted model: setAllowPickle(True))"
OTHERWISE = f"keep plain data, tensors and modules, or {_OPT_IN}"


class Describer:
    """Describes objects that belong together.

    Args:
        weights: tensors that are saved elsewhere, by name; they are described without their values.

    Attributes:
        tensors: the values of all other tensors that were met, on the CPU, by the number in their description.
        constructed: modules that are described by their constructor arguments, by number.
    """

    def __init__(self, weights: Mapping[str, Tensor] | None = None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.constructed: dict[int, nn.Module] = {}
        self._weights = {id(tensor): name for name, tensor in (weights or {}).items()}
        self._overlapping = _overlapping(weights or {})
        self._numbers: dict[int, int] = {}
        self._storages: dict[int, str] = {}
        self._kept: list[Any] = list((weights or {}).values())  # an id is of one object as long as that lives

    def describe(self, value: Any, where: str) -> Description:
        """JSON-able description of a value.

        Raises:
            PersistenceError: it has none; says which part of it, and what to do.
        """
        if value is None or type(value) in (bool, int, float, str):
            plain: bool | int | float | str | None = value
            return plain
        if type(value) is list:
            return [self.describe(item, f"{where}[{k}]") for k, item in enumerate(value)]
        if id(value) in self._numbers and not isinstance(value, Tensor):
            return {"same": self._numbers[id(value)]}
        for kind, describe in self._kinds():
            if isinstance(value, kind):
                return describe(value, where)
        if isinstance(value, type) or (callable(value) and getattr(value, "__qualname__", None)):
            return {"import": path_of(value, where)}
        return self._object(value, where)

    def _kinds(self) -> Iterable[tuple[Any, Callable[[Any, str], Description]]]:
        yield nn.Module, self._module
        yield Tensor, self._tensor
        yield enum.Enum, lambda value, where: {"enum": path_of(type(value), where), "name": value.name}
        yield _TORCH_VALUES, lambda value, where: {"torch": str(value).removeprefix("torch.")}
        yield torch.device, lambda value, where: {"device": str(value)}
        yield torch.Size, lambda value, where: {"size": list(value)}
        yield tuple, self._tuple
        yield dict, self._dict
        yield (set, frozenset), self._set
        yield (
            (slice, range),
            lambda value, where: {type(value).__name__: self._items((value.start, value.stop, value.step), where)},
        )
        yield complex, lambda value, where: {"complex": [value.real, value.imag]}
        yield (bytes, bytearray), lambda value, where: {type(value).__name__: value.hex()}
        yield pathlib.PurePath, lambda value, where: {"path": str(value)}
        yield np.ndarray, self._array
        yield np.generic, self._numpy_scalar
        yield np.dtype, lambda value, where: {"numpy_dtype": value.str}
        yield logging.Logger, lambda value, where: {"logger": value.name}
        yield functools.partial, self._partial
        yield types.MethodType, self._method

    def _number(self, value: Any) -> int:
        self._kept.append(value)
        return self._numbers.setdefault(id(value), len(self._numbers))

    def _items(self, values: Iterable[Any], where: str) -> list[Description]:
        return [self.describe(item, f"{where}[{k}]") for k, item in enumerate(values)]

    def _tuple(self, value: tuple[Any, ...], where: str) -> Description:
        if type(value) is tuple:
            return {"tuple": self._items(value, where)}
        if not hasattr(value, "_fields"):
            raise _refused(f"a {type(value).__name__} has no description", where)
        return {"named_tuple": path_of(type(value), where), "items": self._items(value, where)}

    def _dict(self, value: dict[Any, Any], where: str) -> Description:
        factory = FACTORIES.get(value.default_factory) if type(value) is defaultdict else None
        if type(value) not in (dict, OrderedDict) and factory is None:
            raise _refused(f"a {type(value).__name__} has no description", where)
        kind = "dict" if type(value) is dict else factory or "ordered_dict"
        return {
            kind: [[self.describe(key, where), self.describe(item, f"{where}[{key!r}]")] for key, item in value.items()]
        }

    def _set(self, value: Any, where: str) -> Description:
        if type(value) not in (set, frozenset):
            raise _refused(f"a {type(value).__name__} has no description", where)
        return {type(value).__name__: sorted((self.describe(item, where) for item in value), key=json.dumps)}

    def _array(self, value: np.ndarray[Any, Any], where: str) -> Description:
        if type(value) is not np.ndarray or value.dtype.kind not in "biufc":
            raise _refused("an array that is not of numbers has no description", where)
        return {"array": self._tensor(torch.from_numpy(np.array(value, order="C")), where), "type": value.dtype.str}

    def _numpy_scalar(self, value: np.generic, where: str) -> Description:
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise _refused(f"a {type(value).__name__} has no description", where)
        return {"numpy": value.dtype.str, "value": value.item()}

    def _partial(self, value: functools.partial[Any], where: str) -> Description:
        return {
            "partial": path_of(value.func, where),
            "args": self._items(value.args, where),
            "kwargs": {name: self.describe(value.keywords[name], f"{where}.{name}") for name in sorted(value.keywords)},
        }

    def _method(self, value: types.MethodType, where: str) -> Description:
        function, owner = value.__func__, self.describe(value.__self__, where)
        if getattr(type(value.__self__), function.__name__, None) is function:
            return {"method": owner, "name": function.__name__}
        return {"bound": self.describe(function, where), "to": owner}

    def _object(self, value: Any, where: str) -> Description:
        path = path_of(type(value), where)
        number = self._number(value)
        state = _state_of(value, where)
        return {"object": path, "id": number, "state": self._pairs(state, where)}

    def _pairs(self, values: Mapping[str, Any], where: str) -> list[list[Description]]:
        return [[name, self.describe(value, f"{where}.{name}")] for name, value in values.items()]

    def _tensor(self, tensor: Tensor, where: str) -> Description:
        if id(tensor) in self._numbers:
            return {"tensor": self._numbers[id(tensor)]}
        is_parameter = isinstance(tensor, nn.Parameter)
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise _refused("a lazy parameter has no shape yet", where, "run the module once on a few rows")
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_quantized
        if not plain or tensor.is_meta:
            raise _refused(f"a {type(tensor).__name__} of this kind has no description", where)
        name = self._weights.get(id(tensor))
        if name is None:
            self._own(tensor, where)
        elif name in self._overlapping:
            raise _refused(
                f"it shares memory with {self._overlapping[name]}", where, "tie them as one: b.weight = a.weight"
            )
        number = self._number(tensor)
        if name is None:
            self.tensors[str(number)] = tensor.detach().cpu().clone()
        described = {
            "tensor": number,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "parameter": is_parameter,
            "requires_grad": tensor.requires_grad and tensor.is_leaf,
            "weights": name,
        }
        return {**described, "attributes": self._pairs(vars(tensor), where)} if vars(tensor) else described

    def _own(self, tensor: Tensor, where: str) -> None:
        """Refuses a part of another tensor: it would become a copy, which does not follow that one any more."""
        if not self._storages:
            self._storages = {_storage(kept): "a weight" for kept in self._kept if isinstance(kept, Tensor)}
        place = _storage(tensor)
        if tensor.numel() and place in self._storages and tensor.layout == torch.strided:
            raise _refused(
                f"it shares memory with {self._storages[place]}", where, "make it in forward, or keep a clone of it"
            )
        self._storages[place] = where

    def _module(self, module: nn.Module, where: str) -> Description:
        if isinstance(module, torch.jit.ScriptModule):
            raise _refused(
                "a compiled TorchScript module has no description", where, "give the module before torch.jit.script"
            )
        if hasattr(module, "_orig_mod"):
            raise _refused(
                "a module of torch.compile has no description",
                where,
                "give the module itself; module.compile() is fine",
            )
        cls, parametrized = plain_class(module)
        head = {"module": path_of(cls, where), "id": self._number(module)}
        if cls.__module__.startswith("hvdspark.") or hasattr(module, "constructor_arguments"):
            self.constructed[self._numbers[id(module)]] = module
            return {**head, **self._by_arguments(module, where)}
        state = dict(vars(module)) if parametrized else _state_of(module, where)
        attributes = {name: value for name, value in state.items() if name not in STRUCTURE}
        return {
            **head,
            "training": module.training,
            "parameters": self._pairs(module._parameters, where),
            "buffers": self._pairs(module._buffers, where),
            "transient": sorted(module._non_persistent_buffers_set),
            "modules": self._pairs(module._modules, where),
            "attributes": self._pairs(attributes, where),
            "hooks": self._hooks(module, where),
            "parametrized": parametrized,
        }

    def _by_arguments(self, module: nn.Module, where: str) -> dict[str, Any]:
        described = {
            "given": [[name, self.describe(value, f"{where}.{name}")] for name, value in arguments_of(module, where)],
            "training": module.training,
            "evaluating": [name for name, part in module.named_modules() if name and part.training != module.training],
            "frozen": [name for name, parameter in module.named_parameters() if not parameter.requires_grad],
        }
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if id(tensor) in self._numbers:
                raise _refused("it is shared with another module", f"{where}.{name}")
        return described

    def _hooks(self, module: nn.Module, where: str) -> list[Description]:
        described: list[Description] = []
        for kind, flags in HOOKS.items():
            for key, hook in getattr(module, kind, {}).items():
                # State dicts pass them, under a name or wrapped together with their module.
                bare = getattr(hook, "hook", hook)
                if "state_dict" in kind and getattr(bare, "__module__", "").startswith("torch.nn."):
                    continue  # torch's own: for state dicts of earlier versions
                set_flags = [flag for flag in flags if key in getattr(module, flag, ())]
                entry = self.describe(bare, f"{where}.{kind}")
                described.append(
                    {
                        "kind": kind,
                        "hook": entry,
                        "flags": set_flags,
                        "with_module": bool(getattr(hook, "with_module", 0)),
                    }
                )
        return described


def plain_class(module: nn.Module) -> tuple[type[nn.Module], list[str]]:
    """The class that the user wrote, and the names of the tensors that torch's parametrizations have replaced."""
    if not parametrize.is_parametrized(module):
        return type(module), []
    return parametrize.type_before_parametrizations(module), list(module.parametrizations)  # type: ignore[arg-type]


def arguments_of(module: nn.Module, where: str) -> list[tuple[str, Any]]:
    """Constructor arguments of a module that keeps each as an attribute of its name, or says them itself.

    Raises:
        PersistenceError: one of them is not kept.
    """
    if callable(own := getattr(module, "constructor_arguments", None)):
        return list(own().items())
    arguments = []
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name in _IGNORED_ARGUMENTS:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(module, name):
            raise _refused(f"constructor argument {name!r} cannot be read back from {type(module).__name__}", where)
        arguments.append((name, getattr(module, name)))
    return arguments


def _state_of(value: Any, where: str) -> dict[str, Any]:
    """What pickle would take along, where that is a plain dict of attributes."""
    cls = type(value)
    try:
        reduced = value.__reduce_ex__(2)
    except Exception as error:
        raise _refused(f"a {cls.__name__} cannot be taken apart ({error})", where) from error
    if any(hasattr(value, name) for name in copyreg._slotnames(cls)):  # type: ignore[attr-defined]
        reduced = ""  # Module's own __getstate__ leaves them out
    whole = isinstance(reduced, tuple) and len(reduced) > 1
    if whole and (reduced[:2] == (copyreg.__newobj__, (cls,)) or reduced[:2] == (cls, ())):  # type: ignore[attr-defined]
        state = reduced[2] if len(reduced) > 2 else None
        if (state is None or isinstance(state, dict)) and not any(reduced[3:]):
            return dict(state or {})
    raise _refused(f"a {cls.__name__} is more than its attributes", where)


def _overlapping(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Of two tensors that are not one object and lie in the same memory: the name of one by that of the other."""
    found: dict[str, str] = {}
    ends: dict[int, tuple[int, str, int]] = {}  # by storage: where the tensors so far end, and the last of them
    strided = [(name, t) for name, t in tensors.items() if t.layout == torch.strided and t.numel()]
    for name, tensor in sorted(strided, key=lambda item: item[1].storage_offset()):
        first = tensor.storage_offset()
        end = 1 + int(first) + sum((size - 1) * step for size, step in zip(tensor.size(), tensor.stride(), strict=True))
        place = _storage(tensor)
        before, other, number = ends.get(place, (0, "", 0))
        if first < before and number != id(tensor):
            found[name] = other
        ends[place] = max((before, other, number), (end, name, id(tensor)))
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _refused(what: str, where: str, hint: str | None = None) -> PersistenceError:
    return PersistenceError(what, where=where, hint=OTHERWISE if hint is None else f"{hint}, or {_OPT_IN}")
