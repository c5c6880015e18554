"""Plain data is held to the types of a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from hvdspark.plain import built, built_of_known


@dataclass(frozen=True)
class Inner:
    number: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    flags: tuple[bool, ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)
    anything: Any = None
    perhaps: Inner | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def test_plain_data_becomes_what_it_says() -> None:
    said = {
        "name": "a",
        "inner": {"number": 1, "share": 1},
        "flags": [True, False],
        "by_name": {"x": {"number": 2}},
        "anything": [{}],
        "perhaps": None,
        "counts": {"a": 3},
        "rows": [{"a": 1}],
    }
    found = built(Outer, said)
    expected = Outer("a", Inner(1, 1), (True, False), {"x": Inner(2)}, [{}], None, {"a": 3}, [{"a": 1}])
    assert found == expected
    assert isinstance(found.flags, tuple)
    assert built(Outer, {"name": "a", "inner": {"number": 1}, "perhaps": {"number": 2}}).perhaps == Inner(2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 5}, "thing.name is of type int"),
        ({"name": None}, "thing.name is of type NoneType"),
        ({"inner": []}, "thing.inner is of type list"),
        ({"inner": {}}, "thing.inner lacks 'number'"),
        ({"inner": {"number": True}}, "thing.inner.number is of type bool"),
        ({"inner": {"number": 1.0}}, "thing.inner.number is of type float"),
        ({"inner": {"number": 1, "share": "1"}}, "thing.inner.share is of type str"),
        ({"flags": [1]}, r"thing.flags\[0\] is of type int"),
        ({"flags": "ab"}, "thing.flags is of type str"),
        ({"by_name": {"x": {"number": 1, "y": 2}}}, "thing.by_name.x has an unknown entry 'y'"),
        ({"perhaps": 5}, "thing.perhaps is of type int"),
        ({"rows": [5]}, r"thing.rows\[0\] is of type int"),
        ({"more": 1}, "thing has an unknown entry 'more'"),
    ],
)
def test_other_types_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        built(Outer, {"name": "a", "inner": {"number": 1}, **change}, "thing")


@pytest.mark.parametrize("data", [None, [], "a", 5])
def test_no_object_is_no_object(data: Any) -> None:
    with pytest.raises(TypeError, match="Outer is of type"):
        built(Outer, data)


def test_what_later_versions_write_may_be_more() -> None:
    assert built_of_known(Inner, {"number": 1, "more": [], "": 5}, "thing") == Inner(1)
    with pytest.raises(TypeError, match="thing lacks 'number'"):
        built_of_known(Inner, {"more": 1}, "thing")
    with pytest.raises(TypeError, match="thing is of type list"):
        built_of_known(Inner, [], "thing")
