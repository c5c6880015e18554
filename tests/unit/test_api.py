"""docs/api.md lists what is public, and what is public says what it takes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hvdspark.collectives import Collective

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "api.md"
MODULES = re.findall(r"^## `(hvdspark[a-z.]*)`$", PAGE.read_text(), re.MULTILINE)


def listed(module: str) -> dict[str, str]:
    """The names that the page gives for a module, and where each is."""
    (section,) = re.findall(rf"^## `{re.escape(module)}`$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^- \[`(\w+)`\]\(([^)]+)\): \S", section, re.MULTILINE))


def public() -> list[Any]:
    found = []
    for module in MODULES:
        exported = importlib.import_module(module)
        things = [(name, getattr(exported, name)) for name in exported.__all__]
        found += [pytest.param(thing, id=f"{module}.{name}") for name, thing in things if callable(thing)]
    return found


def test_the_page_has_what_users_import() -> None:
    assert {"hvdspark", "hvdspark.estimators", "hvdspark.embedding", "hvdspark.data", "hvdspark.train"} < {*MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_the_page_and_the_exports_agree(module: str) -> None:
    exported = importlib.import_module(module)
    names = listed(module)
    assert sorted(names) == sorted(exported.__all__)
    for name, link in names.items():
        file = (PAGE.parent / link).resolve()
        assert file.exists(), link
        assert re.search(rf"^((class|def) {name}\b|{name} *[:=])", file.read_text(), re.MULTILINE), (name, link)


def taken_by(thing: Any) -> list[str]:
    """Names of the arguments, without those that Params are."""
    if dataclasses.is_dataclass(thing):
        return [field.name for field in dataclasses.fields(thing) if field.init and not field.name.startswith("_")]
    parameters = inspect.signature(thing).parameters.values()
    return [item.name for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]


@pytest.mark.parametrize("thing", public())
def test_what_is_public_says_what_it_takes(thing: Any) -> None:
    classes = [one for one in getattr(thing, "__mro__", [thing]) if one.__module__.startswith("hvdspark")]
    says = "\n".join(part for one in classes for part in (one.__doc__, getattr(one.__init__, "__doc__", "")) if part)
    assert thing.__doc__, "a docstring"
    params = [one for one in dir(thing) if type(getattr(thing, one)).__name__ == "Param"]  # explainParams() has them
    untold = [name for name in taken_by(thing) if name not in params and not re.search(rf"\b{name}\b", says)]
    assert not untold
    inherited = [*getattr(thing, "__mro__", ()), Collective, nn.Module]  # a protocol is no base class
    for name, method in vars(thing).items() if inspect.isclass(thing) else ():
        if inspect.isfunction(method) and not name.startswith("_"):
            assert any(inspect.getdoc(getattr(one, name, None)) for one in inherited), f"{name} has no docstring"
