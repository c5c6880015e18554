"""A run that hvdspark 0.1.0 left resumes. `tests/fixtures/models-0.1.0/write.py` wrote its checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from hvdspark.artifact.tables import bind_tables
from hvdspark.collectives import LocalCollective
from hvdspark.store import Store
from hvdspark.train.checkpoint import Checkpoints
from tests.unit.artifact.saved_before import Checkpointed

FOLDER = Path(__file__).parent.parent.parent / "fixtures" / "models-0.1.0" / "checkpoint"


def test_it_resumes_where_it_was(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "store")
    trained, resumed, collective = Checkpointed(), Checkpointed(), LocalCollective()
    optimizers = {module: torch.optim.Adam(module.parameters(), lr=0.1) for module in (trained, resumed)}
    for module in (trained, resumed):
        bind_tables(module, collective)
    torch.manual_seed(3)
    with torch.no_grad():  # as the script began
        for parameter, fresh in zip(trained.parameters(), Checkpointed().parameters(), strict=True):
            parameter.copy_(fresh)
    checkpoints = Checkpoints(Store(str(tmp_path / "store")), "run-1", collective)
    progress, warnings = checkpoints.resume(resumed, optimizers[resumed])
    assert progress is not None
    assert (progress.epochs, progress.optimizer_steps, progress.best.epoch, warnings) == (2, 2, 1, ())
    assert [row["train_loss"] for row in progress.history] == [1.0, 0.5]
    steps = {trained: 3, resumed: 1}
    for module, count in steps.items():
        for _ in range(count):
            optimizers[module].zero_grad()
            module(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 1])).square().sum().backward()
            optimizers[module].step()
            module.tables.apply_gradients()
    for one, other in zip(trained.state_dict().values(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    asked = torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2])
    torch.testing.assert_close(trained.eval()(*asked), resumed.eval()(*asked), rtol=1e-6, atol=1e-7)
