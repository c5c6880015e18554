"""What a saved description may name: nothing is imported or called for it that the session does not trust."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvdspark.artifact.describe import Describer
from hvdspark.artifact.objects import rebuild
from hvdspark.artifact.trust import Trust, packages_named, path_of
from hvdspark.errors import PersistenceError
from tests.unit.train import ordinary

TOUCH = ["touch", "made-by-a-save"]


def module_state(path: str, **changes: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {
        name: [] for name in ("parameters", "buffers", "transient", "modules", "attributes", "hooks")
    }
    return {"module": path, "id": 0, "training": True, **empty, "parametrized": [], **changes}


def hook(path: str) -> dict[str, Any]:
    return {"kind": "_forward_hooks", "hook": {"import": path}, "flags": [], "with_module": False}


# Each would run code: by being imported, by being called now, or by being called in a fit or in scoring.
DANGEROUS: dict[str, Any] = {
    "function of the standard library": {"import": "subprocess:call"},
    "partial of one": {"partial": "subprocess:call", "args": [TOUCH], "kwargs": {}},
    "partial of a class": {"partial": "subprocess:Popen", "args": [TOUCH], "kwargs": {}},
    "import of a module": {"import": "antigravity:webbrowser"},
    "import for a class": module_state("this:Net"),
    "main program of hvdspark": {"import": "hvdspark.__main__:main"},
    "function of hvdspark": {"partial": "hvdspark.horovod_build:install", "args": [], "kwargs": {}},
    "class of hvdspark that is no layer": {"import": "hvdspark.store:Store"},
    "module through a module": {"import": "torch.nn.functional:torch.hub.load"},
    "import of torch.nn": {"import": "torch.nn.functional:importlib.import_module"},
    "pickle of torch": {"partial": "torch.serialization:load", "args": ["x"], "kwargs": {}},
    "pickle of torch by its short name": {"partial": "torch:load", "args": ["x"], "kwargs": {}},
    "files of torch": {"partial": "torch:from_file", "args": ["x", True, 8], "kwargs": {}},
    "code of torch.fx": module_state("torch.fx.graph_module:GraphModule"),
    "builtin": {"import": "builtins:eval"},
    "object of any class": {"object": "subprocess:Popen", "id": 0, "state": []},
    "hook": module_state("torch.nn.modules.linear:Identity", hooks=[hook("os:system")]),
    "method by assignment": module_state(
        "torch.nn.modules.linear:Identity", attributes=[["forward", {"import": "os:system"}]]
    ),
    "function of an imported module": {"import": "tests.unit.train.ordinary:double"},
    "constructor of an imported class": {
        "module": "tests.unit.train.ordinary:Scaled",
        "arguments": {"scale": 1.0, "use": None},
        "training": True,
    },
    "constructor by given arguments": {"module": "tests.unit.train.ordinary:Buffers", "id": 0, "given": []},
    "class of another name": module_state("tests.unit.train.ordinary:nn.Linear"),
    "type of torch": {"torch": "load"},
    "method that is none": {"method": module_state("torch.nn.modules.linear:Identity"), "name": "__class__"},
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_code_is_not_run_for_a_description(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with pytest.raises(PersistenceError):
        rebuild(DANGEROUS[name])
    assert not {"antigravity", "this"} & (set(sys.modules) - before)
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass
class Restored:
    """Runs code when its state is set."""

    command: str = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        pytest.fail("called")


@dataclasses.dataclass
class Called:
    """Runs code where a hook or a loss is called."""

    command: str = ""

    def __call__(self) -> None:
        pytest.fail("called")


@pytest.mark.parametrize("cls", [Restored, Called])
def test_dataclasses_that_run_code_need_an_opt_in(cls: type) -> None:
    with pytest.raises(PersistenceError, match="does not trust"):
        Trust().find(path_of(cls, "it"))


FREE = [
    torch.relu,
    torch.special.expit,
    math.log1p,
    nn.init.normal_,
    nn.functional.gelu,
    nn.functional.max_pool2d,
    nn.Linear,
    torch.optim.Adam,
    ordinary.Forgetful,
    ordinary.Mode,
    ordinary.Config,
    ordinary.Pair,
]


@pytest.mark.parametrize("value", FREE, ids=str)
def test_layers_optimizers_and_functions_on_tensors_need_no_opt_in(value: Any) -> None:
    assert Trust().find(path_of(value, "it")) is value


def test_a_package_is_trusted_by_name() -> None:
    path = path_of(ordinary.double, "it")
    with pytest.raises(PersistenceError, match=r"does not trust.*double.*spark\.hvdspark\.trustedPackages=tests "):
        Trust(("test", "torch")).find(path)
    assert Trust(("tests",)).find(path) is ordinary.double
    assert Trust(("tests.unit.train",)).find(path) is ordinary.double
    assert Trust(everything=True).find(path_of(subprocess.run, "it")) is subprocess.run
    with pytest.raises(PersistenceError, match="does not trust"):
        Trust(("tests",)).find("tests.unit.artifact.test_trust:subprocess.run")  # not what a package imports


def test_a_class_that_was_not_imported_says_how() -> None:
    with pytest.raises(
        PersistenceError, match="cannot import.*mine.layers:Net.*trustedPackages=mine.*import mine.layers first"
    ):
        rebuild(module_state("mine.layers:Net"))


def test_no_constructor_of_a_users_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    describer = Describer()
    description = describer.describe(ordinary.Scaled(2.0), "model")
    monkeypatch.setattr(ordinary.Scaled, "__init__", lambda *_: pytest.fail("called"))
    assert rebuild(description, describer.tensors).scale == 2.0


def test_packages_that_are_named() -> None:
    layers = [["0", module_state("torch.nn:Linear")], ["1", module_state("nets.deep:Net", hooks=[hook("tools:log")])]]
    described = module_state("hvdspark.models.click:ClickModel", modules=layers, attributes=[["f", "text:of:user"]])
    described["attributes"].append(["g", {"partial": "math:exp", "args": [{"enum": "kinds:Kind"}], "kwargs": {}}])
    assert packages_named({"module": described}) == {"nets", "tools", "kinds"}
