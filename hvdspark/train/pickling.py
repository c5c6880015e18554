"""Modules and what belongs to them as pickles without the values of weights.

They travel in memory between processes of one version. On disk they are written and read only where the user opted in.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import cloudpickle
import torch
from torch import Tensor, nn

from hvdspark.artifact.describe import plain_class
from hvdspark.artifact.objects import weights_of
from hvdspark.artifact.rebuild import inject_parametrized
from hvdspark.errors import ConfigurationError

# Where the functions were that pickles of hvdspark 0.1 name.
_MOVED = {"hvdspark.train.architecture": __name__, "hvdspark.artifact.describe": __name__}


class HasModule(Protocol):
    """What is sent to ranks: a module, and what points at it."""

    module: nn.Module


P = TypeVar("P", bound=HasModule)


@dataclass(frozen=True)
class Packed(Generic[P]):
    """A program and its pickle, which is made once: the driver's copies and those of all ranks come from it.

    Attributes:
        data: without the values of the module's weights.
    """

    program: P
    data: bytes

    def copy(self) -> P:
        """Another program like it, its module without weights."""
        copied: P = cloudpickle.loads(self.data)
        return copied


def pack(program: P) -> Packed[P]:
    """Pickle a program.

    Raises:
        ConfigurationError: it cannot be sent to ranks.
    """
    name = type(program.module).__name__
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in program.module.modules()):
        raise ConfigurationError(
            "a module of torch.jit cannot be sent to ranks, nor be rebuilt when it is loaded",
            value=name,
            where="model",
            hint="train the Python module that it was made of; torch.jit.script(model.module()) compiles what was "
            "trained, for serving",
        )
    try:
        return Packed(program, skeleton(program.module, program))
    except Exception as error:
        raise ConfigurationError(
            f"the module, loss, optimizer or a callback cannot be pickled, so ranks cannot get it: "
            f"{type(error).__name__}: {error}",
            value=name,
            where="model",
            hint="locks, generators, open files and sessions cannot travel: make them in forward, when they are first "
            "needed",
        ) from error


def skeleton(module: nn.Module, whole: Any = None) -> bytes:
    """The module cloudpickled without the tensors of its state dict: kilobytes, for sending.

    Args:
        whole: what holds the module, to be pickled in its place; an optimizer in it keeps pointing at the module.
    """
    return pickled(module if whole is None else whole, weights_of(module))


def pickled(whole: Any, weights: Mapping[str, Tensor]) -> bytes:
    """Objects cloudpickled without the values of these tensors. To be stored only where the user opted in to that.

    What is a part of one of these tensors, such as `parameter.data[0]`, stays a part of it.
    """
    stored = {id(tensor) for tensor in weights.values()}
    wholes = _wholes(weights.values())

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, Tensor) and (whole := _whole_of(value, wholes)) is not None:
                layout = value.size(), value.stride(), value.storage_offset() - whole.storage_offset()
                return _part, (whole, *layout, isinstance(value, nn.Parameter), value.requires_grad, vars(value))
            if id(value) in stored:
                is_parameter = isinstance(value, nn.Parameter)
                return _empty, (tuple(value.shape), value.dtype, is_parameter, value.requires_grad, vars(value))
            if isinstance(value, nn.Module) and (names := plain_class(value)[1]):
                # torch refuses to pickle these, because their class has no import path.
                return _parametrized_again, (plain_class(value)[0], names), vars(value)
            if isinstance(value, types.FunctionType) and vars(nn.functional).get(value.__name__) is value:
                return getattr, (nn.functional, value.__name__)  # some have no import path of their own
            return super().reducer_override(value)

    buffer = io.BytesIO()
    Pickler(buffer).dump(whole)
    return buffer.getvalue()


def _wholes(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """The largest tensor of each storage, where that is in one piece."""
    found: dict[int, Tensor] = {}
    for tensor in sorted(tensors, key=Tensor.numel):
        if tensor.layout == torch.strided and tensor.is_contiguous() and tensor.numel() and not tensor.is_meta:
            found[tensor.untyped_storage().data_ptr()] = tensor
    return found


def _whole_of(tensor: Tensor, wholes: Mapping[int, Tensor]) -> Tensor | None:
    """The tensor that this one is a part of, none of its own."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or not tensor.numel():
        return None
    whole = wholes.get(tensor.untyped_storage().data_ptr())
    if whole is None or whole is tensor or whole.dtype != tensor.dtype:
        return None
    first = tensor.storage_offset() - whole.storage_offset()
    last = first + sum((size - 1) * step for size, step in zip(tensor.size(), tensor.stride(), strict=True))
    return whole if first >= 0 and last < whole.numel() else None


def unpickled(data: bytes) -> Any:
    """What `pickled` made, of this version or an earlier one. Runs whatever code the pickle names."""
    return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(_MOVED.get(module, module), name)


def _empty(
    shape: tuple[int, ...], dtype: torch.dtype, is_parameter: bool, requires_grad: bool, attributes: dict[str, Any]
) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    tensor = nn.Parameter(tensor, requires_grad=requires_grad) if is_parameter else tensor
    vars(tensor).update(attributes)
    return tensor


def _part(
    whole: Tensor,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    is_parameter: bool,
    requires_grad: bool,
    attributes: dict[str, Any],
) -> Tensor:
    tensor = whole.detach().as_strided(size, stride, whole.storage_offset() + offset)
    tensor = nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)
    vars(tensor).update(attributes)
    return tensor


def _parametrized_again(cls: type[nn.Module], names: list[str]) -> nn.Module:
    """A module without its state, of the class that `torch.nn.utils.parametrize` makes of `cls`."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    inject_parametrized(module, names)
    return module
