"""Python objects of a model as JSON, and back: no pickle on disk.

A module is described by its class path and constructor arguments. The arguments are read from the module itself:
each constructor parameter must be an attribute of the same name, which holds for the layers of `torch.nn`
(`Linear.in_features`) and is easy to keep in a class of one's own (`self.width = width`). Containers list their
children. What was described is rebuilt and compared with the original before it is trusted.

Classes and functions are described by their import path, `functools.partial` by that and its arguments.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import io
from collections.abc import Mapping
from typing import Any, cast

import cloudpickle
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from hvdspark.errors import PersistenceError

Description = dict[str, Any] | list[Any] | str | int | float | bool | None

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Of Sigmoid, Tanh and the like, and of Identity: they swallow whatever they are given.
_WITHOUT_ARGUMENTS = (nn.Module.__init__, nn.Identity.__init__)
# Where the weights live and in which type is the loader's business, not the architecture's.
# The last two are torch's deprecated spellings of `reduction`.
_IGNORED_PARAMETERS = ("self", "device", "dtype", "_weight", "_freeze", "size_average", "reduce")


def describe(value: Any, where: str) -> Description:
    """JSON-able description of a module, class, function, partial or plain value.

    Args:
        where: name of the value for the error message.

    Raises:
        PersistenceError: it cannot be rebuilt from JSON alone; says why and what to do.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [describe(item, where) for item in value]
    if isinstance(value, nn.Module):
        described = _describe_module(value, where)
        _check_rebuilt(value, rebuild(described), where)
        return described
    if isinstance(value, functools.partial):
        return {
            "partial": _path(value.func, where),
            "args": [describe(item, where) for item in value.args],
            "kwargs": {name: describe(item, where) for name, item in value.keywords.items()},
        }
    return {"import": _path(value, where)}


def rebuild(description: Description) -> Any:
    """What `describe` described; a module comes back with fresh weights.

    Raises:
        PersistenceError: a class or function cannot be imported here.
    """
    if isinstance(description, list):
        return [rebuild(item) for item in description]
    if not isinstance(description, dict):
        return description
    if "import" in description:
        return _import(description["import"])
    if "partial" in description:
        keywords = {name: rebuild(item) for name, item in description["kwargs"].items()}
        return functools.partial(_import(description["partial"]), *rebuild(description["args"]), **keywords)
    cls = _import(description["module"])
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise PersistenceError("not a torch module class", value=description["module"])
    if "children" in description:
        children = {name: rebuild(child) for name, child in description["children"]}
        return _fill_container(cls, children)
    module = cls(**{name: _argument_again(item) for name, item in description["arguments"].items()})
    return module.train(description["training"])


def skeleton(module: nn.Module, whole: Any = None) -> bytes:
    """The module cloudpickled without the tensors of its state dict: kilobytes, for sending, never for storing.

    Args:
        whole: what holds the module, to be pickled in its place; an optimizer in it keeps pointing at the module.
    """
    tensors = [tensor for tensor in module.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)]
    stored = {id(tensor) for tensor in tensors if not is_lazy(tensor)}

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if id(value) in stored:
                is_parameter = isinstance(value, nn.Parameter)
                return _empty, (tuple(value.shape), value.dtype, is_parameter, value.requires_grad)
            if isinstance(value, nn.Module) and parametrize.is_parametrized(value):
                # torch gives such a module a class of its own, which has no import path and refuses to be pickled.
                plain = parametrize.type_before_parametrizations(value)
                names = tuple(cast(nn.ModuleDict, value.parametrizations))
                return _parametrized_again, (plain, names), vars(value)
            return super().reducer_override(value)

    buffer = io.BytesIO()
    Pickler(buffer).dump(module if whole is None else whole)
    return buffer.getvalue()


def _empty(shape: tuple[int, ...], dtype: torch.dtype, is_parameter: bool, requires_grad: bool) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    return nn.Parameter(tensor, requires_grad=requires_grad) if is_parameter else tensor


def _parametrized_again(cls: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """A module without its state, of the class that `torch.nn.utils.parametrize` makes of `cls`."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    return module


def _describe_module(module: nn.Module, where: str) -> dict[str, Any]:
    cls = type(module)
    path = _path(cls, where)
    if cls in _CONTAINERS:
        children = [[name, _describe_module(child, where)] for name, child in module.named_children()]
        return {"module": path, "children": children}
    arguments: dict[str, Description] = {}
    if cls.__init__ in _WITHOUT_ARGUMENTS:
        return {"module": path, "arguments": arguments, "training": module.training}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name in _IGNORED_PARAMETERS:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(module, name):
            raise PersistenceError(
                f"constructor argument {name!r} of {cls.__name__} cannot be read back from the module",
                where=where,
                hint=f"keep it as self.{name} in __init__, or opt in to pickle with allowPickle=True",
            )
        arguments[name] = _plain(getattr(module, name), name, cls, where)
    return {"module": path, "arguments": arguments, "training": module.training}


def _plain(value: Any, name: str, cls: type, where: str) -> Description:
    if isinstance(value, nn.Module):
        return _describe_module(value, where)
    if isinstance(value, Tensor) or (value is None and name == "bias"):
        return value is not None  # Linear(bias=True) keeps the parameter itself under that name
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, name, cls, where) for item in value]
    raise PersistenceError(
        f"constructor argument {name!r} of {cls.__name__} is not plain data",
        value=type(value).__name__,
        where=where,
        hint="pass numbers, strings and lists, or opt in to pickle with allowPickle=True",
    )


def _argument_again(value: Any) -> Any:
    if isinstance(value, dict):
        return rebuild(value)  # a module given as an argument
    return tuple(_argument_again(item) for item in value) if isinstance(value, list) else value


def _fill_container(cls: type[nn.Module], children: Mapping[str, nn.Module]) -> nn.Module:
    if cls is nn.ModuleDict:
        return nn.ModuleDict(children)
    if cls is nn.ModuleList:
        return nn.ModuleList(children.values())
    container = nn.Sequential()
    for name, child in children.items():
        container.add_module(name, child)
    return container


def _check_rebuilt(original: nn.Module, copy: nn.Module, where: str) -> None:
    def shape_of(module: nn.Module) -> tuple[str, dict[str, tuple[Any, ...]]]:
        state = module.state_dict()
        return repr(module), {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}

    if shape_of(original) != shape_of(copy):
        raise PersistenceError(
            f"{type(original).__name__} cannot be rebuilt from its constructor arguments",
            where=where,
            hint="it was changed after its construction, or an attribute differs from the argument of that name; "
            "build everything in __init__, or opt in to pickle with allowPickle=True",
        )


def _path(value: Any, where: str) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module is None or name is None or module == "__main__" or "<" in name:
        raise PersistenceError(
            "it has no import path",
            value=repr(value)[:200],
            where=where,
            hint="define it at the top level of a module that the executors can import too (not in a notebook or "
            "script), or opt in to pickle with allowPickle=True",
        )
    return f"{module}:{name}"


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise PersistenceError(
            "cannot import a part of the saved model", value=path, hint=f"install or add the module it is in: {error}"
        ) from error
