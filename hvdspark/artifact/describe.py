"""Modules without their weights: as JSON for storing, with no pickle, and pickled in memory for sending.

What was described is rebuilt and compared, state by state, before the description is trusted.
"""

from __future__ import annotations

import contextlib
import io
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hvdspark.artifact.describing import OTHERWISE, Describer, Description, plain_class
from hvdspark.artifact.rebuilding import Rebuilder, inject_parametrized
from hvdspark.artifact.sameness import changed, check_constructed, first_difference, same_bits
from hvdspark.artifact.trust import Trust
from hvdspark.errors import PersistenceError

_NOTHING = Trust()
_VERSIONS = "it may have been written by other versions of hvdspark, torch or the module's package"


def describe(value: Any, where: str) -> Description:
    """JSON-able description of a module, class, function, partial or plain value, which holds no tensor but weights.

    Raises:
        PersistenceError: it cannot be rebuilt from JSON alone; says why and what to do.
    """
    weights = weights_of(value) if isinstance(value, nn.Module) else {}
    descriptions, tensors = describe_all({where: value}, weights)
    if tensors:
        raise PersistenceError("it holds tensors that are no weights", value=len(tensors), where=where)
    return descriptions[where]


def describe_all(
    objects: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Description], dict[str, Tensor]]:
    """Descriptions of objects by their name, and the tensors that they refer to; what they share, they share again.

    Args:
        weights: tensors that are saved elsewhere, by name.

    Raises:
        PersistenceError: one of them cannot be rebuilt from these alone, or would come back as something else.
    """
    with _in_words("a part of it cannot be described", OTHERWISE):
        describer = Describer(weights)
        descriptions = {name: describer.describe(objects[name], name) for name in sorted(objects)}
        rebuilder = Rebuilder(describer.tensors, Trust(everything=True))
        copies = {name: rebuilder.rebuild(description) for name, description in descriptions.items()}
        for number, module in describer.constructed.items():
            check_constructed(module, rebuilder.known[number], type(module).__name__)
        again = Describer(rebuilder.weights)
        for name, description in descriptions.items():
            if (difference := first_difference(description, again.describe(copies[name], name), name)) is not None:
                raise changed(difference, name)
        for key, tensor in describer.tensors.items():
            if not same_bits(tensor, again.tensors[key]):
                raise changed(f"the values of a tensor of shape {tuple(tensor.shape)}", ", ".join(objects))
        rebuilder.forget()
    return descriptions, describer.tensors


def rebuild(description: Description, tensors: Mapping[str, Tensor] | None = None, trust: Trust = _NOTHING) -> Any:
    """What `describe` described; a module's weights are undefined until they are loaded.

    Raises:
        PersistenceError: code is named that is not trusted, or cannot be imported here.
    """
    return rebuild_all({"": description}, tensors or {}, trust)[""]


def rebuild_all(descriptions: Mapping[str, Description], tensors: Mapping[str, Tensor], trust: Trust) -> dict[str, Any]:
    """What `describe_all` described. Raises as `rebuild`."""
    rebuilder = Rebuilder(tensors, trust)
    with _in_words("a part of the saved model cannot be rebuilt", _VERSIONS):
        rebuilt = {name: rebuilder.rebuild(descriptions[name]) for name in sorted(descriptions)}
    rebuilder.forget()
    return rebuilt


@contextlib.contextmanager
def _in_words(what: str, hint: str) -> Iterator[None]:
    """PersistenceError for whatever objects of others do when they are taken apart or put together."""
    try:
        yield
    except PersistenceError:
        raise
    except Exception as error:
        raise PersistenceError(what, value=f"{type(error).__name__}: {error}", hint=hint) from error


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


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dict themselves."""
    state = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor) and not is_lazy(tensor)}


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
