from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvdspark.artifact.weights import load_weights
from hvdspark.collectives import LocalCollective, ThreadedCollective, run_threaded
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.store import Store
from hvdspark.train.best_epoch import BestEpoch
from hvdspark.train.checkpoint import Checkpoints
from hvdspark.train.optimizer_state import flatten_state, unflatten_state
from hvdspark.train.train_progress import TrainProgress

RUN = Path("runs/run-1")


def module_and_optimizer(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.full((3, 2), value)).sum().backward()
    optimizer.step()
    return module, optimizer


def progress(epochs: int, best: int = 0) -> TrainProgress:
    rows = [{"epoch": epoch, "train_loss": float(epoch)} for epoch in range(epochs)]
    return TrainProgress(BestEpoch("train_loss", 2, 0.5, best, 1), epochs, 7 * epochs, rows)


def save(
    checkpoints: Checkpoints, module: nn.Module, optimizer: torch.optim.Optimizer, at: TrainProgress
) -> str | None:
    """Collective. Begin it, and wait for it; what `settle` says."""
    checkpoints.begin(module, optimizer, at)
    return checkpoints.settle()


def save_epochs(store: Store, count: int, best: int = 0) -> list[dict[str, torch.Tensor]]:
    """Save epochs 0 .. count - 1; their weights."""
    checkpoints, saved = Checkpoints(store, "run-1", LocalCollective()), []
    for epoch in range(count):
        module, optimizer = module_and_optimizer(float(epoch + 1))
        assert save(checkpoints, module, optimizer, progress(epoch + 1, min(best, epoch))) is None
        saved.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return saved


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_saved_is_resumed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    module, optimizer = module_and_optimizer(1.0)
    optimizer.param_groups[0]["lr"] = 0.025
    assert save(Checkpoints(store, "run-1", LocalCollective()), module, optimizer, progress(1)) is None
    other, other_optimizer = module_and_optimizer(5.0)
    resumed, warnings = Checkpoints(store, "run-1", LocalCollective()).resume(other, other_optimizer)
    assert resumed == progress(1)
    assert warnings == ()
    assert equal(dict(other.state_dict()), dict(module.state_dict()))
    mine, theirs = optimizer.state_dict(), other_optimizer.state_dict()
    assert theirs["param_groups"] == mine["param_groups"]
    for index, state in mine["state"].items():
        assert equal(theirs["state"][index], state)


def test_nothing_to_resume_is_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / RUN / "checkpoints" / "epoch-00000").mkdir(parents=True)  # begun, never committed
    resumed = Checkpoints(Store(str(tmp_path)), "run-1", LocalCollective()).resume(*module_and_optimizer(1.0))
    assert resumed == (None, ())


@pytest.mark.parametrize("name", [".nfs000001", "_SUCCESS", "epoch-new", "epoch-00009-copy"])
def test_what_is_no_checkpoint_is_no_obstacle(name: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    save_epochs(store, 1)
    (tmp_path / RUN / "checkpoints" / name).write_text("of a file system, or of somebody's")
    resumed, warnings = Checkpoints(store, "run-1", LocalCollective()).resume(*module_and_optimizer(9.0))
    assert resumed == progress(1)
    assert warnings == ()
    save_epochs(store, 3, best=2)
    names = sorted(path.name for path in (tmp_path / RUN / "checkpoints").iterdir())
    assert names == sorted([name, "epoch-00001", "epoch-00002"])


def test_only_the_best_and_the_two_newest_are_kept(tmp_path: Path) -> None:
    save_epochs(Store(str(tmp_path)), 5, best=1)
    names = sorted(path.name for path in (tmp_path / RUN / "checkpoints").iterdir())
    assert names == ["epoch-00001", "epoch-00003", "epoch-00004"]


def test_no_pickle_on_disk(tmp_path: Path) -> None:
    save_epochs(Store(str(tmp_path)), 1)
    files = sorted(path.name for path in (tmp_path / RUN / "checkpoints" / "epoch-00000").iterdir())
    assert files == ["manifest.json", "optimizer.json", "optimizer.safetensors", "weights.safetensors"]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "optimizer.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "delete"])
def test_a_damaged_epoch_is_passed_over_with_a_warning(name: str, how: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    saved = save_epochs(store, 3, best=1)
    path = tmp_path / RUN / "checkpoints" / "epoch-00002" / name
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(b"\0" + path.read_bytes()[1:])
    module, optimizer = module_and_optimizer(9.0)
    resumed, warnings = Checkpoints(store, "run-1", LocalCollective()).resume(module, optimizer)
    assert resumed == progress(2, best=1)
    assert equal(dict(module.state_dict()), saved[1])
    if (name, how) == ("manifest.json", "delete"):  # then it was simply never finished
        assert warnings == ()
    else:
        assert "passed over a damaged checkpoint" in warnings[0]


def test_all_damaged_is_an_error_on_every_rank(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    save_epochs(store, 1)
    (tmp_path / RUN / "checkpoints" / "epoch-00000" / "optimizer.json").write_text("{}")

    def body(collective: ThreadedCollective) -> None:
        with pytest.raises(CheckpointError, match="damaged"):
            Checkpoints(store, "run-1", collective).resume(*module_and_optimizer(1.0))

    run_threaded(2, body)


def test_another_optimizers_state_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    save_epochs(store, 1)
    module = nn.Linear(2, 1)
    groups = [{"params": [module.weight]}, {"params": [module.bias]}]
    with pytest.raises(CheckpointError, match="does not fit"):
        Checkpoints(store, "run-1", LocalCollective()).resume(module, torch.optim.Adam(groups))


def test_a_model_that_cannot_be_written_is_an_error_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))

    def refuse(self: Store, path: str, data: bytes) -> None:
        raise StoreError("disk full", value=path)

    monkeypatch.setattr(Store, "write_bytes", refuse)
    modules = [module_and_optimizer(1.0)[0] for _ in range(2)]

    def body(collective: ThreadedCollective) -> str:
        with pytest.raises((StoreError, CheckpointError)) as caught:
            Checkpoints(store, "run-1", collective).write_model(modules[collective.rank], {})
        return type(caught.value).__name__

    assert run_threaded(2, body) == ["StoreError", "CheckpointError"]
    assert not (tmp_path / RUN / "model" / "manifest.json").exists()


def test_a_rank_that_has_nothing_to_write_needs_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stores = [Store(str(tmp_path)), Store(str(tmp_path / "file" / "store"))]
    modules = [module_and_optimizer(1.0) for _ in range(2)]

    def body(collective: ThreadedCollective) -> str | None:
        checkpoints = Checkpoints(stores[collective.rank], "run-1", collective)
        return save(checkpoints, *modules[collective.rank], progress(1))

    assert run_threaded(2, body) == [None, None]
    assert (tmp_path / RUN / "checkpoints" / "epoch-00000" / "manifest.json").exists()


def test_of_several_epochs_the_first_that_is_whole_is_restored(tmp_path: Path) -> None:
    store, (module, _) = Store(str(tmp_path)), module_and_optimizer(9.0)
    saved, checkpoints = save_epochs(store, 4), Checkpoints(store, "run-1", LocalCollective())
    assert checkpoints.restore_weights([0, 3, 2, 1], module) == (0, None)
    assert equal(dict(module.state_dict()), saved[0])
    (tmp_path / RUN / "checkpoints" / "epoch-00000" / "weights.safetensors").unlink()
    epoch, damage = checkpoints.restore_weights([0, 1, 3, 2], module)  # 1 is not kept
    assert epoch == 3
    assert "epoch-00000" in str(damage)
    assert equal(dict(module.state_dict()), saved[3])
    with pytest.raises(CheckpointError, match="every checkpoint of the run is damaged.*epoch-00000"):
        checkpoints.restore_weights([0, 1], module)


def test_a_write_cut_short_leaves_the_last_epoch_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    saved = save_epochs(store, 1)

    def refuse(self: Store, path: str, manifest: dict[str, Any]) -> None:
        raise StoreError("connection lost", value=path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", refuse)
        warning = save(Checkpoints(store, "run-1", LocalCollective()), *module_and_optimizer(3.0), progress(2))
        assert "connection lost" in str(warning)
    module, optimizer = module_and_optimizer(9.0)
    assert Checkpoints(store, "run-1", LocalCollective()).resume(module, optimizer)[0] == progress(1)
    assert equal(dict(module.state_dict()), saved[0])
    save_epochs(store, 3, best=2)
    names = sorted(path.name for path in (tmp_path / RUN / "checkpoints").iterdir())
    assert names == ["epoch-00001", "epoch-00002"]


def test_the_model_is_loadable_and_clear_forgets_everything(tmp_path: Path) -> None:
    store, module = Store(str(tmp_path)), module_and_optimizer(1.0)[0]
    checkpoints = Checkpoints(store, "run-1", LocalCollective())
    save_epochs(store, 1)
    checkpoints.write_model(module, {"epoch": 0})
    other = nn.Linear(2, 1)
    artifact = load_weights(store, checkpoints.model_path, other)
    assert artifact.manifest["epoch"] == 0
    assert equal(dict(other.state_dict()), dict(module.state_dict()))
    checkpoints.clear()
    assert list((tmp_path / RUN).iterdir()) == []


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "Adadelta", "Rprop", "ASGD"])
def test_state_of_torchs_optimizers_survives(name: str) -> None:
    module = nn.Linear(2, 1)
    arguments = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    optimizer = getattr(torch.optim, name)(module.parameters(), lr=0.1, **arguments)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors, tree = flatten_state(optimizer.state_dict())
    restored = unflatten_state(tensors, json.loads(json.dumps(tree)))
    state = optimizer.state_dict()
    assert restored["param_groups"] == state["param_groups"]
    for index, values in state["state"].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(restored["state"][index][key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("name", ["NAdam", "Adafactor", "Adam", "ASGD"])
def test_state_keeps_its_types_beside_parameters_of_others(name: str, tmp_path: Path) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        module = nn.ParameterList([torch.ones(2, 3, dtype=dtype) for dtype in (torch.bfloat16, torch.float64)])
        return module, getattr(torch.optim, name)(module.parameters(), lr=0.1)

    (module, optimizer), (other, other_optimizer) = made(), made()
    sum(parameter.square().sum().double() for parameter in module).backward()  # type: ignore[union-attr]
    optimizer.step()
    checkpoints = Checkpoints(Store(str(tmp_path)), "run-1", LocalCollective())
    assert save(checkpoints, module, optimizer, progress(1)) is None
    checkpoints.resume(other, other_optimizer)
    resumed = other_optimizer.state_dict()["state"]
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            mine, theirs = torch.as_tensor(value), torch.as_tensor(resumed[index][key])
            assert (theirs.dtype, torch.equal(theirs, mine)) == (mine.dtype, True), (index, key)


def test_optimizer_state_of_other_kinds_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'function'"):
        flatten_state({"state": {0: {"hook": lambda: None}}})


_MEMORY = """
import resource, sys, torch
from torch import nn
from hvdspark.collectives import LocalCollective
from hvdspark.store import Store
from hvdspark.train import checkpoint
from hvdspark.train.best_epoch import BestEpoch
from hvdspark.train.train_progress import TrainProgress

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

module = nn.Sequential(nn.Linear(1024, 16384), nn.Linear(16384, 1))
optimizer = torch.optim.Adam(module.parameters())
module(torch.ones(1, 1024)).sum().backward()
optimizer.step()
optimizer.zero_grad()
before = peak()
checkpoint.spare_bytes = lambda: 0
checkpoints = checkpoint.Checkpoints(Store(sys.argv[1]), "run-1", LocalCollective())
checkpoints.begin(module, optimizer, TrainProgress(BestEpoch("l", 0), 1))
assert checkpoints.settle() is None
print(peak() - before)
"""


@pytest.mark.slow
def test_a_checkpoint_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    # Weights of 64 MiB, and twice as much state of Adam; in a process of its own, whose peak is this.
    done = subprocess.run([sys.executable, "-c", _MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert written > 3 * 64 << 20


def test_tensors_that_an_optimizer_shares_are_written_once(tmp_path: Path) -> None:
    store, (module, optimizer) = Store(str(tmp_path)), module_and_optimizer(1.0)
    shared = torch.arange(4.0)
    for parameter in module.parameters():
        optimizer.state[parameter]["shared"] = shared
    assert save(Checkpoints(store, "run-1", LocalCollective()), module, optimizer, progress(1)) is None
    other, other_optimizer = module_and_optimizer(5.0)
    Checkpoints(store, "run-1", LocalCollective()).resume(other, other_optimizer)
    for parameter in other.parameters():
        assert torch.equal(other_optimizer.state[parameter]["shared"], shared)
