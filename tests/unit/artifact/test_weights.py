from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hvdspark.artifact.directory import WEIGHTS, Artifact
from hvdspark.artifact.tensors import pack, read_tensors, unpack
from hvdspark.artifact.weights import check_saveable, load_weights, write_weights
from hvdspark.errors import CheckpointError, ConfigurationError
from hvdspark.store import Store


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embedding.weight


class Extra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"seen": 3}


def write(store: Store, module: nn.Module, directory: str = "model") -> dict[str, str]:
    write_weights(store, directory, module, {})
    aliases: dict[str, str] = Artifact.open(store, directory).manifest["aliases"]
    return aliases


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    store, module, other = Store(str(tmp_path)), Tied(), Tied()
    assert write(store, module) == {"out.weight": "embedding.weight"}
    assert list(read_tensors(store, f"model/{WEIGHTS}")) == ["embedding.weight"]
    load_weights(store, "model", other)
    assert torch.equal(other.out.weight, module.out.weight)
    assert other.out.weight is other.embedding.weight


def test_views_empty_and_transposed_tensors_survive() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": whole,
        "row": whole[1],
        "transposed": whole.t(),
        "none": torch.zeros(0, 4),
        "none too": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    import safetensors.torch

    data, aliases = pack(tensors)
    loaded = unpack(safetensors.torch.load(data), aliases)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].dtype == tensor.dtype
    assert len(data) < 2 * sum(tensor.nbytes for tensor in tensors.values()) + 1000


def test_state_that_is_no_tensor_is_refused_before_training() -> None:
    with pytest.raises(ConfigurationError, match="not a tensor: '_extra_state'"):
        check_saveable(Extra(2, 1))
    check_saveable(nn.BatchNorm1d(2))


def test_hooks_of_parameters_are_refused_before_training() -> None:
    module = nn.Linear(2, 1)
    handle = module.weight.register_hook(lambda gradient: gradient * 0.0)
    with pytest.raises(ConfigurationError, match="has hooks.*'weight'.*Hint"):
        check_saveable(module)
    handle.remove()
    check_saveable(module)


def test_numbers_that_the_format_does_not_know_are_kept(tmp_path: Path) -> None:
    store, module, other = (
        Store(str(tmp_path)),
        nn.Linear(2, 3, dtype=torch.complex128),
        nn.Linear(2, 3).to(torch.complex128),
    )
    module.register_buffer("scalar", torch.tensor(1j))
    module.register_buffer("same", module.scalar)
    other.register_buffer("scalar", torch.tensor(0j))
    other.register_buffer("same", other.scalar)
    assert write(store, module) == {"same": "scalar"}
    load_weights(store, "model", other)
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(other.same, torch.tensor(1j))  # type: ignore[arg-type]


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "words"), [("missing", "cannot be read"), ("truncated", "damaged"), ("flipped", "damaged")]
)
def test_a_damaged_file_is_found(how: str, words: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, nn.Linear(2, 1))
    damage(tmp_path / "model" / WEIGHTS, how)
    with pytest.raises(CheckpointError, match=words):
        load_weights(store, "model", nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, "no complete model or checkpoint here"),
        ("{", "manifest cannot be read"),
        ('{"format": 2}', "newer format"),
        ('{"format": 2, "written_by": "hvdspark 7"}', "newer format: 2.*Hint: upgrade hvdspark: hvdspark 7 wrote it"),
        ("{}", "newer format"),
        ("[]", "is damaged"),
        ('{"format": 1, "files": {}, "state": 5}', "is damaged"),
    ],
)
def test_a_manifest_must_be_there_and_of_our_format(manifest: str | None, words: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, nn.Linear(2, 1))
    path = tmp_path / "model" / "manifest.json"
    if manifest is None:
        path.unlink()
    else:
        path.write_text(manifest)
    with pytest.raises(CheckpointError, match=words):
        load_weights(store, "model", nn.Linear(2, 1))


def test_weights_of_another_module_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, nn.Linear(2, 1))
    with pytest.raises(CheckpointError, match="another module"):
        load_weights(store, "model", nn.Linear(3, 1))


def test_loaded_tensors_do_not_follow_the_file(tmp_path: Path) -> None:
    store, module = Store(str(tmp_path)), nn.Linear(2, 1)
    write(store, module)
    before: Tensor = module.weight.detach().clone()
    load_weights(store, "model", module)
    (tmp_path / "model" / WEIGHTS).write_bytes(b"\0" * 100)
    assert torch.equal(module.weight, before)
