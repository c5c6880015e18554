"""Python objects on disk: as JSON and tensors, with no pickle.

What was described is rebuilt and compared, state by state, before the description is trusted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hvdspark.artifact.compare import changed, check_constructed, first_difference, same_bits
from hvdspark.artifact.describe import OTHERWISE, Describer, Description
from hvdspark.artifact.rebuild import Rebuilder
from hvdspark.artifact.tensors import of_bytes
from hvdspark.artifact.tensors import pack as pack_tensors
from hvdspark.artifact.tensors import unpack as unpack_tensors
from hvdspark.artifact.trust import Trust
from hvdspark.errors import PersistenceError

TENSORS = "objects.safetensors"  # those that are no weights

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


def pack(objects: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[dict[str, Description], dict[str, bytes]]:
    """Objects as JSON and as files by name.

    Args:
        weights: tensors of the objects that are saved elsewhere, by name.

    Raises: as `describe_all`.
    """
    state, tensors = describe_all(objects, weights)
    return state, {TENSORS: pack_tensors(tensors)[0]} if tensors else {}


def unpack(state: Mapping[str, Description], files: Mapping[str, bytes], trust: Trust) -> dict[str, Any]:
    """The objects that `pack` packed; weights have no values yet. Raises as `rebuild`."""
    tensors = unpack_tensors(of_bytes(files[TENSORS]), {}) if TENSORS in files else {}
    return rebuild_all(state, tensors, trust)


@contextlib.contextmanager
def _in_words(what: str, hint: str) -> Iterator[None]:
    """PersistenceError for whatever objects of others do when they are taken apart or put together."""
    try:
        yield
    except PersistenceError:
        raise
    except Exception as error:
        raise PersistenceError(what, value=f"{type(error).__name__}: {error}", hint=hint) from error


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dict themselves."""
    state = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor) and not is_lazy(tensor)}
