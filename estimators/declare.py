"""How Params are declared: their checks, and the accessors that a class gets for them.

Values are plain JSON. A Param that must lie in a range says so in its doc and is checked when it is set; what
depends on several Params is checked by `fit` before anything is started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pyspark.ml.param import Param, Params, TypeConverters

from hvdspark.checks import nearest
from hvdspark.errors import ConfigurationError
from hvdspark.ranges import Range
from hvdspark.specs import TrainSpec

C = TypeVar("C", bound=type)
Converter = Callable[[Any], Any]


def accessors(cls: C) -> C:
    """Class decorator: give every Param of the class a `getX` and a chaining `setX`, unless it has one."""
    return _with_accessors(cls, cls)


def model_accessors(scoring: type) -> Callable[[C], C]:
    """Class decorator for fitted models: a `getX` for every Param, a `setX` for `allowPickle` and those of scoring."""
    return lambda cls: _with_accessors(cls, scoring, "allowPickle")


def setter_name(name: str) -> str:
    """ "setBatchSize" of "batchSize"."""
    return f"set{name[0].upper()}{name[1:]}"


def _with_accessors(cls: C, settable: type, *others: str) -> C:
    for name in dir(cls):
        if not isinstance(getattr(cls, name, None), Param):
            continue
        get, set_ = f"get{setter_name(name)[3:]}", setter_name(name)
        if not hasattr(cls, get):
            setattr(cls, get, _getter(name))
        if not hasattr(cls, set_) and (hasattr(settable, name) or name in others):
            setattr(cls, set_, _setter(name))
    return cls


def _getter(name: str) -> Callable[[Any], Any]:
    def get(self: Any) -> Any:
        return self.getOrDefault(name)

    get.__doc__ = f"Value of {name}, or its default."
    return get


def _setter(name: str) -> Callable[[Any, Any], Any]:
    def set_(self: Any, value: Any) -> Any:
        return self._set(**{name: value})

    set_.__doc__ = f"Set {name}; returns this object."
    return set_


def in_range(name: str, convert: Converter, limits: Range) -> Converter:
    def check(value: Any) -> Any:
        number = convert(value)
        if number not in limits:
            raise ConfigurationError("out of range", value=value, where=name, hint=f"it {limits.demand(number)}")
        return number

    return check


def one_of(name: str, *choices: str) -> Converter:
    def check(value: Any) -> str:
        plain = value.lower() if isinstance(value, str) else value
        if plain not in choices:
            close = nearest(plain, choices)
            hint = f"did you mean {close}? It is one of " if close else "one of "
            raise ConfigurationError("unknown choice", value=value, where=name, hint=hint + ", ".join(choices))
        return str(plain)

    return check


def distinct_names(name: str, *, may_be_empty: bool = False) -> Converter:
    def check(value: Any) -> list[str]:
        names: list[str] = TypeConverters.toListString(value)
        if not (names or may_be_empty) or len(set(names)) < len(names):
            raise ConfigurationError("column names must be given, each once", value=names, where=name)
        return names

    return check


def numbers_by_name(value: Any) -> dict[str, float]:
    numbers: dict[str, float] = by_name(lambda item: float(TypeConverters.toFloat(item)), "numbers")(value)
    return numbers


def model_uri(value: Any) -> str:
    """Of a fitted model the directory that it is in; else what is given is its URI. TypeError where it is neither."""
    found = getattr(value, "uri", value)
    if not isinstance(found, str):
        raise TypeError(
            f"Could not convert {type(value).__name__} to the URI of a trained model: give a fitted model (of a "
            "pipeline the stage, of a search the bestModel), its uri, or the path that it was saved to"
        )
    return found


def by_name(convert: Converter, what: str) -> Converter:
    """Of a dict by names; `what` its values are, for the error."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError(f"Could not convert {value!r} to a dict of {what}")
        return {TypeConverters.toString(key): convert(item) for key, item in value.items()}

    return check


def param(name: str, doc: str, convert: Converter) -> Any:
    """A Param of that name."""
    return Param(Params._dummy(), name, doc, convert)


def number(name: str, doc: str, convert: Converter, limits: Range) -> Any:
    """A Param that is a number within limits, which "{range}" in its doc stands for."""
    return param(name, doc.format(range=limits), in_range(name, convert, limits))


def of_spec(name: str, field: str, doc: str, convert: Converter = TypeConverters.toString) -> Any:
    """A Param with the limits and choices of a field of `TrainSpec`; its default is `TrainSpec.<field>`."""
    metadata = TrainSpec.__dataclass_fields__[field].metadata
    if choices := metadata.get("choices"):
        return param(name, doc, one_of(name, *choices))
    limits = metadata.get("range")
    return param(name, doc, convert) if limits is None else number(name, doc, convert, limits)


def worded(declared: Any, doc: str) -> Any:
    """A Param again, checked as it was declared, in the words of another class."""
    return param(declared.name, doc, declared.typeConverter)
