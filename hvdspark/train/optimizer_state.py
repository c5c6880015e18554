"""An optimizer's state as tensors and a JSON-able tree: no pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvdspark.errors import CheckpointError


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], tree: Any, where: str) -> None:
    """Give an optimizer the state that `flatten_state` took apart.

    Raises:
        CheckpointError: it does not fit the optimizer.
    """
    try:
        state = unflatten_state(tensors, tree)
        optimizer.load_state_dict(state)
        _keep_types(optimizer, state["state"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, RuntimeError) as error:
        raise CheckpointError(
            "the optimizer's state does not fit the optimizer", value=str(error), where=where
        ) from error


def _keep_types(optimizer: torch.optim.Optimizer, saved: dict[Any, dict[str, Any]]) -> None:
    """Give an optimizer's loaded state the types that it was saved in: torch has cast it to those of the parameters,
    which are not the types of all state (NAdam and ASGD keep some in float32)."""
    numbers = [number for group in optimizer.state_dict()["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        loaded = optimizer.state[parameter] if number in saved else {}
        for key, value in saved.get(number, {}).items():
            if isinstance(value, Tensor) and value.dtype != loaded[key].dtype:
                loaded[key] = value.to(loaded[key].device)


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts, lists and tuples into their tensors by number, and a JSON-able tree that refers to them.

    Raises:
        CheckpointError: a leaf is neither a tensor nor a number, string, bool or None.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = str(len(tensors))
            tensors[key] = value.detach()  # no copy: this may be as large as the weights, several times
            return {"tensor": key}
        if isinstance(value, dict):
            return {"dict": [[walk(key), walk(item)] for key, item in value.items()]}
        if isinstance(value, tuple | list):
            return {type(value).__name__ if type(value) in (tuple, list) else "tuple": [walk(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise CheckpointError(
            "the optimizer keeps state that cannot be stored", value=type(value).__name__, where="optimizer"
        )

    return tensors, walk(state)


def unflatten_state(tensors: dict[str, Tensor], tree: Any) -> Any:
    """What `flatten_state` took apart."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content].clone()  # not a view of a memory-mapped file
    if kind == "dict":
        return {unflatten_state(tensors, key): unflatten_state(tensors, item) for key, item in content}
    items = [unflatten_state(tensors, item) for item in content]
    return tuple(items) if kind == "tuple" else items
