"""Whether what was rebuilt is what was described: nothing is saved that would come back as something else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.artifact.describe import HOOKS, STRUCTURE, Description
from hvdspark.errors import PersistenceError

# Parts of a description that are pairs of a name and what it names.
_OF_PAIRS = ("attributes", "parameters", "buffers", "modules", "state", "given")
_PLAIN = (bool, int, float, str, tuple, list, type(None))


def changed(difference: str, where: str) -> PersistenceError:
    """The error for an object that would come back with that difference."""
    return PersistenceError(
        "it would come back as something else than was trained",
        value=difference,
        where=where,
        hint="build everything in __init__ from plain data, tensors and modules, or opt in to pickle with "
        "allowPickle=True (on a fitted model: setAllowPickle(True))",
    )


def first_difference(one: Description, other: Description, where: str) -> str | None:
    """Where two descriptions differ, in words; None if they do not."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [(where if key in _OF_PAIRS else f"{where}.{key}", one[key], other[key]) for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [
            _named(where, left, right) or (f"{where}[{position}]", left, right)
            for position, (left, right) in enumerate(zip(one, other, strict=True))
        ]
    else:
        same = type(one) is type(other) and (one == other or (one != one and other != other))
        return None if same else f"{where} is {_short(other)} instead of {_short(one)}"
    return next(
        (found for place, left, right in parts if (found := first_difference(left, right, place)) is not None), None
    )


def _named(where: str, one: Description, other: Description) -> tuple[str, Description, Description] | None:
    """Place and values of two pairs of a name and a value."""
    pairs = all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) for item in (one, other))
    if not pairs or one[0] != other[0]:  # type: ignore[index]
        return None
    return f"{where}.{one[0]}", one[1], other[1]  # type: ignore[index]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two CPU tensors are equal bit for bit, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)


def check_constructed(original: nn.Module, copy: nn.Module, where: str) -> None:
    """PersistenceError where a module that was made from constructor arguments again differs from the original."""
    if (difference := _shapes(original, copy)) is None:
        for (name, one), other in zip(original.named_modules(), copy.modules(), strict=True):
            if (difference := _attributes(one, other)) is not None:
                difference = f"{difference} of {name or type(original).__name__}"
                break
    if difference is not None:
        raise changed(difference, where)


def _shapes(original: nn.Module, copy: nn.Module) -> str | None:
    if repr(original) != repr(copy):
        return f"{type(original).__name__} has other layers"
    states = [
        {name: (tuple(t.shape), t.dtype, t.requires_grad) for name, t in module.state_dict(keep_vars=True).items()}
        for module in (original, copy)
    ]
    return next((name for name in states[0] if states[0][name] != states[1].get(name)), None)


def _attributes(one: nn.Module, other: nn.Module) -> str | None:
    if type(one) is not type(other) or one.training != other.training:
        return "the class or mode"
    for kind in HOOKS:
        if len(getattr(one, kind, ())) != len(getattr(other, kind, ())):
            return kind
    for name in (vars(one).keys() | vars(other).keys()) - STRUCTURE:
        mine, others = vars(one).get(name), vars(other).get(name)
        if type(mine) is not type(others) or (isinstance(mine, _PLAIN) and repr(mine) != repr(others)):
            return f"attribute {name!r}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
