"""A module's own weights: whether they can be saved, and their way into an artifact and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.artifact.directory import WEIGHTS, Artifact, ArtifactWriter
from hvdspark.embedding.lineage import dense_weights_alone
from hvdspark.errors import CheckpointError, ConfigurationError
from hvdspark.store import Store


def check_saveable(module: nn.Module) -> None:
    """Raise ConfigurationError where a module has what would be lost on its way to ranks and into the store.

    That is state that is not a tensor, or one without values, and hooks of parameters, which no copy of a tensor has.
    """
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigurationError(
                "a parameter has hooks, which do not travel to the ranks",
                value=name,
                where=type(module).__name__,
                hint="do in the module's forward, in the optimizer or in a callback what the hook does",
            )
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                "the module keeps state that is not a tensor",
                value=name,
                where=type(module).__name__,
                hint="register it as a buffer instead of using get_extra_state",
            )
        if value.is_meta:
            raise ConfigurationError(
                "a parameter or buffer has no values: it is on torch's device 'meta'",
                value=name,
                where=type(module).__name__,
                hint="make the module on the CPU, or call module.to_empty(device='cpu') and give it values",
            )


def write_weights(
    store: Store,
    directory: str,
    module: nn.Module,
    entries: Mapping[str, Any],
    tables: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the module's state dict and commit the directory.

    Args:
        entries: what the manifest says beside the files.
        tables: what `tables.write_tables` returned.
    """
    writer = ArtifactWriter(store, directory)
    writer.tensors(WEIGHTS, module.state_dict())
    writer.commit(entries, tables)


def load_weights(store: Store, directory: str, module: nn.Module, expected: str | None = None) -> Artifact:
    """Verify an artifact and load its dense weights into the module.

    Args:
        expected: fingerprint of the weights that are meant.

    Raises:
        CheckpointError: incomplete, damaged, of another module, or not the weights that were expected.
    """
    artifact = Artifact.open(store, directory, expected)
    artifact.verify()
    try:
        with torch.no_grad(), dense_weights_alone():
            module.load_state_dict(artifact.tensors())
    except RuntimeError as error:
        raise CheckpointError("the weights are of another module", value=str(error), where=directory) from error
    return artifact
