"""Python objects from their descriptions (`describe`). Only constructors of hvdspark's own classes are called."""

from __future__ import annotations

import enum
import functools
import logging
import pathlib
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from hvdspark.artifact.describe import FACTORIES, Description
from hvdspark.artifact.trust import Trust, opt_in
from hvdspark.errors import PersistenceError


class Rebuilder:
    """Rebuilds objects that were described together.

    Args:
        tensors: their values, by number; those of weights are undefined until the weights are loaded.
        trust: which code may be named.

    Attributes:
        known: modules, objects and tensors by the number in their description.
        weights: tensors whose values are elsewhere, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor], trust: Trust) -> None:
        self._values, self._trust = tensors, trust
        self.known: dict[int, Any] = {}
        self.weights: dict[str, Tensor] = {}
        self._kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
            "same": lambda item: self.known[item["same"]],
            "tensor": self._tensor,
            "module": self._module,
            "object": self._object,
            "import": lambda item: self._trust.find(item["import"]),
            "partial": self._partial,
            "method": self._method,
            "bound": lambda item: types.MethodType(self.rebuild(item["bound"]), self.rebuild(item["to"])),
            "enum": self._enum,
            "named_tuple": self._named_tuple,
            "tuple": lambda item: tuple(self.rebuild(item["tuple"])),
            "dict": lambda item: dict(self._pairs(item["dict"])),
            "ordered_dict": lambda item: OrderedDict(self._pairs(item["ordered_dict"])),
            **{name: functools.partial(self._defaultdict, kind, name) for kind, name in FACTORIES.items()},
            "set": lambda item: set(self.rebuild(item["set"])),
            "frozenset": lambda item: frozenset(self.rebuild(item["frozenset"])),
            "size": lambda item: torch.Size(item["size"]),
            "slice": lambda item: slice(*self.rebuild(item["slice"])),
            "range": lambda item: range(*self.rebuild(item["range"])),
            "complex": lambda item: complex(*item["complex"]),
            "bytes": lambda item: bytes.fromhex(item["bytes"]),
            "bytearray": lambda item: bytearray.fromhex(item["bytearray"]),
            "path": lambda item: pathlib.Path(item["path"]),
            "logger": lambda item: logging.getLogger(item["logger"]),
            "torch": lambda item: _torch_value(item["torch"]),
            "device": lambda item: torch.device(item["device"]),
            "array": lambda item: self.rebuild(item["array"]).numpy().astype(item["type"], copy=False),
            "numpy": lambda item: np.dtype(item["numpy"]).type(item["value"]),
            "numpy_dtype": lambda item: np.dtype(item["numpy_dtype"]),
        }

    def rebuild(self, description: Description) -> Any:
        """What was described.

        Raises:
            PersistenceError: code is named that is not trusted or not there, or the description is damaged.
        """
        if isinstance(description, list):
            return [self.rebuild(item) for item in description]
        if not isinstance(description, dict):
            return description
        for kind, rebuild in self._kinds.items():
            if kind in description:
                return rebuild(description)
        raise PersistenceError("a description of an unknown kind", value=sorted(description), hint="upgrade hvdspark")

    def forget(self) -> None:
        """Let go of what was rebuilt. A Rebuilder refers to itself: weights would stay until the collector comes."""
        self.known.clear()
        self.weights.clear()

    def _pairs(self, pairs: list[list[Any]]) -> list[tuple[Any, Any]]:
        return [(self.rebuild(name), self.rebuild(value)) for name, value in pairs]

    def _defaultdict(self, kind: Callable[[], Any], name: str, item: dict[str, Any]) -> dict[Any, Any]:
        return defaultdict(kind, self._pairs(item[name]))

    def _tensor(self, item: dict[str, Any]) -> Tensor:
        number = item["tensor"]
        if number not in self.known:
            dtype = _torch_value(item["dtype"])
            if item["weights"] is None:
                tensor = self._values[str(number)].reshape(item["shape"]).to(dtype).clone()
            else:
                tensor = torch.empty(item["shape"], dtype=dtype)
            if item["parameter"]:
                tensor = nn.Parameter(tensor, requires_grad=item["requires_grad"])
            else:
                tensor.requires_grad_(item["requires_grad"])
            if item["weights"] is not None:
                self.weights[item["weights"]] = tensor
            self.known[number] = tensor
            vars(tensor).update(dict(self._pairs(item.get("attributes", []))))
        known = self.known[number]
        assert isinstance(known, Tensor)
        return known

    def _module(self, item: dict[str, Any]) -> nn.Module:
        cls = self._trust.find(item["module"], "torch module class", nn.Module)
        if "attributes" not in item:
            if not self._trust.may_construct(cls):
                package = cls.__module__.partition(".")[0]
                raise PersistenceError(
                    "the save wants the constructor of a class that this session does not trust to be called",
                    value=item["module"],
                    hint=f"if you trust where it comes from, {opt_in(package)}",
                )
            return self._by_arguments(cls, item) if "given" in item else self._of_first_format(cls, item)
        module: nn.Module = cls.__new__(cls)
        self.known[item["id"]] = module
        nn.Module.__init__(module)
        state: dict[str, Any] = {
            "training": item["training"],
            "_parameters": type(module._parameters)(self._pairs(item["parameters"])),
            "_buffers": type(module._buffers)(self._pairs(item["buffers"])),
            "_non_persistent_buffers_set": set(item["transient"]),
            "_modules": type(module._modules)(self._pairs(item["modules"])),
        }
        module.__setstate__({**state, **dict(self._pairs(item["attributes"]))})
        for hook in item["hooks"]:
            self._add_hook(module, hook)
        inject_parametrized(module, item["parametrized"])
        return module

    def _by_arguments(self, cls: type[nn.Module], item: dict[str, Any]) -> nn.Module:
        module = cls(**dict(self._pairs(item["given"])))
        self.known[item["id"]] = module
        module.train(item["training"])
        parts, parameters = dict(module.named_modules()), dict(module.named_parameters())
        for name in item["evaluating"]:
            parts[name].training = not item["training"]
        for name in item["frozen"]:
            parameters[name].requires_grad_(False)
        return module

    def _add_hook(self, module: nn.Module, item: dict[str, Any]) -> None:
        hooks = getattr(module, item["kind"])
        handle = RemovableHandle(hooks)
        hook = self.rebuild(item["hook"])
        if item["kind"] == "_load_state_dict_pre_hooks":
            hook = _WrappedHook(hook, module if item["with_module"] else None)
        hooks[handle.id] = hook
        for flag in item["flags"]:
            getattr(module, flag)[handle.id] = True

    def _object(self, item: dict[str, Any]) -> Any:
        cls = self._trust.find(item["object"], "class")
        value = cls.__new__(cls)
        self.known[item["id"]] = value
        state = dict(self._pairs(item["state"]))
        if hasattr(value, "__setstate__"):
            value.__setstate__(state)
        else:
            vars(value).update(state)  # also where attributes are frozen
        return value

    def _partial(self, item: dict[str, Any]) -> functools.partial[Any]:
        arguments = self.rebuild(item["args"])
        keywords = {name: self.rebuild(item["kwargs"][name]) for name in sorted(item["kwargs"])}
        return functools.partial(self._trust.find(item["partial"]), *arguments, **keywords)

    def _method(self, item: dict[str, Any]) -> types.MethodType:
        owner = self.rebuild(item["method"])
        function = getattr(type(owner), item["name"])
        if not isinstance(function, types.FunctionType):
            raise PersistenceError("not a method", value=item["name"], where=type(owner).__name__)
        return types.MethodType(function, owner)

    def _enum(self, item: dict[str, Any]) -> Any:
        cls = self._trust.find(item["enum"], "enum class", enum.Enum)
        return cls.__members__[item["name"]]

    def _named_tuple(self, item: dict[str, Any]) -> Any:
        cls = self._trust.find(item["named_tuple"], "class of named tuples", tuple)
        return tuple.__new__(cls, self.rebuild(item["items"]))

    def _of_first_format(self, cls: type[nn.Module], item: dict[str, Any]) -> nn.Module:
        """By constructor arguments, as hvdspark 0.1 wrote it: tuples and lists are both lists there."""
        if "children" in item:
            return _fill_container(cls, {name: self.rebuild(child) for name, child in item["children"]})
        module = cls(**{name: self._first_argument(value) for name, value in item["arguments"].items()})
        return module.train(item["training"])

    def _first_argument(self, value: Any) -> Any:
        return tuple(self._first_argument(part) for part in value) if isinstance(value, list) else self.rebuild(value)


def inject_parametrized(module: nn.Module, names: list[str]) -> None:
    """Give a module the class that torch's parametrizations give it, for tensors of these names."""
    if names:
        parametrize._inject_new_class(module)
        for name in names:
            parametrize._inject_property(module, name)


def _torch_value(name: str) -> Any:
    value = vars(torch).get(name)
    if not isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        raise PersistenceError("not a type of torch", value=name)
    return value


def _fill_container(cls: type[nn.Module], children: Mapping[str, nn.Module]) -> nn.Module:
    if cls is nn.ModuleDict:
        return nn.ModuleDict(children)
    if cls is nn.ModuleList:
        return nn.ModuleList(children.values())
    container = nn.Sequential()
    for name, child in children.items():
        container.add_module(name, child)
    return container
