"""What is saved of a module predicts the same bits in another process, or is refused with what is in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import safetensors.torch
import torch
from torch import nn

from hvdspark.artifact.objects import describe_all, rebuild, weights_of
from hvdspark.artifact.tensors import pack, unpack
from hvdspark.artifact.trust import Trust
from hvdspark.errors import PersistenceError
from hvdspark.train.pickling import skeleton
from tests.unit.train.ordinary import MODULES, REFUSED, rows

ROOT = Path(__file__).resolve().parents[3]
TRUST = Trust(("tests",))  # functions of this folder are called by name


def save(module: nn.Module, directory: Path) -> None:
    description, tensors = describe_all({"model": module}, weights_of(module))
    weights, aliases = pack(module.state_dict())
    directory.mkdir()
    (directory / "description.json").write_text(json.dumps([description["model"], aliases], sort_keys=True))
    (directory / "weights.safetensors").write_bytes(weights)
    (directory / "tensors.safetensors").write_bytes(pack(tensors)[0])


def load(directory: Path) -> nn.Module:
    description, aliases = json.loads((directory / "description.json").read_text())
    tensors = unpack(safetensors.torch.load((directory / "tensors.safetensors").read_bytes()), {})
    module: nn.Module = rebuild(description, tensors, TRUST)
    module.load_state_dict(unpack(safetensors.torch.load((directory / "weights.safetensors").read_bytes()), aliases))
    return module


def predictions(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(rows())


def flags(module: nn.Module) -> dict[str, Any]:
    return {
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "training": {name: part.training for name, part in module.named_modules()},
        "buffers": [name for name, _ in module.named_buffers()],
        "transient": [name for name, part in module.named_modules() if part._non_persistent_buffers_set],
    }


def test_ordinary_modules_predict_the_same_bits_in_another_process(tmp_path: Path) -> None:
    torch.manual_seed(7)
    refused = {}
    for name, make in MODULES.items():
        module = make()
        # What fit returns goes through memory, and is what has to be met again.
        returned: nn.Module = cloudpickle.loads(skeleton(module))
        returned.load_state_dict(module.state_dict())
        assert flags(returned) == flags(module), name
        try:
            save(returned, tmp_path / name)
        except PersistenceError as error:
            refused[name] = str(error)
            continue
        (tmp_path / name / "flags.json").write_text(json.dumps(flags(module)))
        torch.save(predictions(module), tmp_path / name / "expected.pt")
        torch.testing.assert_close(predictions(returned), predictions(module), rtol=0, atol=0, equal_nan=True, msg=name)
    assert refused == {}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.unit.train.test_saved_modules", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "5"},
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == {}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_come_back_as_something_else_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    module = make()
    with pytest.raises(PersistenceError, match=f"{message}.*Hint.*allowPickle"):
        describe_all({"model": module}, weights_of(module))


def _differences(directory: Path) -> dict[str, str]:
    """What differs of each saved module in this process, by name."""
    found = {}
    for saved in sorted(directory.iterdir()):
        try:
            module, expected = load(saved), torch.load(saved / "expected.pt")
            if flags(module) != json.loads((saved / "flags.json").read_text()):
                found[saved.name] = f"flags {flags(module)}"
            elif not torch.equal(predictions(module), expected):
                found[saved.name] = "predictions"
        except Exception as error:
            found[saved.name] = repr(error)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_differences(Path(sys.argv[1]))))
