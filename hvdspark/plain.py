"""Plain data from a file or another process, held to the types that a dataclass gives its fields.

What comes out has these types all the way down: whoever uses it need not ask again.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def built(cls: type[T], data: Any, where: str = "") -> T:
    """A dataclass of JSON's values, and of dicts and lists for what is in it.

    Args:
        where: what it is called in the error.

    Raises:
        TypeError: something is of another type than its field, or a field is missing or unknown; says which.
    """
    return typing.cast(T, _built(cls, data, where or cls.__name__))


def built_of_known(cls: type[T], data: Any, where: str) -> T:
    """As `built`, of an object that may have more entries than the dataclass: later versions may write some."""
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return built(cls, {name: value for name, value in _of_type(dict, data, where).items() if name in names}, where)


def _built(annotation: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return data
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _object(annotation, _of_type(dict, data, where), where)
    if origin in (types.UnionType, typing.Union):
        return _one_of(arguments, data, where)
    if origin in (list, tuple):
        items = _of_type(list, data, where)
        return origin(_built(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(items))
    if origin in (dict, Mapping):
        pairs = _of_type(dict, data, where).items()
        return {name: _built(arguments[1], value, f"{where}.{name}") for name, value in pairs}
    return _of_type(type(None) if annotation is None else annotation, data, where)


def _object(cls: type, data: Mapping[str, Any], where: str) -> Any:
    hints = _hints(cls)
    if strangers := sorted(data.keys() - hints.keys(), key=str):
        raise TypeError(f"{where} has an unknown entry {strangers[0]!r}")
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - data.keys()):
        raise TypeError(f"{where} lacks {missing[0]!r}")
    return cls(**{name: _built(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _one_of(options: tuple[Any, ...], data: Any, where: str) -> Any:
    errors = []
    for option in options:
        try:
            return _built(option, data, where)
        except TypeError as error:
            errors.append(error)
    raise errors[0]


def _of_type(kind: Any, data: Any, where: str) -> Any:
    """To JSON 1 is a number as 1.0 is, and true is none."""
    accepted = {float: (int, float), list: (list, tuple)}.get(kind, kind)
    if not isinstance(data, accepted) or (isinstance(data, bool) and kind is not bool):
        raise TypeError(f"{where} is of type {type(data).__name__}, not {getattr(kind, '__name__', kind)}")
    return data


_hints = functools.cache(typing.get_type_hints)
