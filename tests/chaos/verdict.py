"""Whether a run that was disturbed ended as if it had not been."""

from __future__ import annotations

import torch
from torch import Tensor

from hvdspark.artifact.tables import freeze_tables
from hvdspark.artifact.weights import load_weights
from hvdspark.store import Store
from tests.chaos.counted import module_of
from tests.chaos.drawn import Fit

TOLERANCE = 1e-6


def weights_in(fit: Fit, store: Store, directory: str) -> dict[str, Tensor]:
    """All weights of a model, rows of tables included; "counts" is [rows, epochs], how often each row was trained.

    Raises:
        CheckpointError: there is no complete model.
    """
    module = module_of(fit).eval()
    freeze_tables(load_weights(store, directory, module), module)
    with torch.no_grad():
        vectors, counts = module.looked_up(torch.arange(fit.rows))
    return {**module.state_dict(), "vectors of rows": vectors, "counts": counts}


def differences(calm: dict[str, Tensor], struck: dict[str, Tensor]) -> list[str]:
    """One line for each thing that is not as in the undisturbed run, or not exactly once."""
    lines = []
    for name, tensor in calm.items():
        largest = (tensor.double() - struck[name].double()).abs().max().item() if tensor.numel() else 0.0
        if not largest <= TOLERANCE:
            lines.append(f"{name} differs by {largest:g}")
    for run, weights in (("undisturbed", calm), ("disturbed", struck)):
        wrong = (weights["counts"] != 1).nonzero().tolist()
        lines += [
            f"{run}: row {row} of epoch {epoch} was trained {weights['counts'][row, epoch]:g} times"
            for row, epoch in wrong[:5]
        ]
        if len(wrong) > 5:
            lines.append(f"{run}: and {len(wrong) - 5} more such rows")
    return lines
