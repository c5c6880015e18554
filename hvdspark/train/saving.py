"""Whether a module will be saved as what it is, and whether what was trained is what is kept of it."""

from __future__ import annotations

from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from hvdspark.artifact.compare import changed, first_difference, same_bits
from hvdspark.artifact.describe import Describer, Description
from hvdspark.artifact.forward import forward, inputs_of
from hvdspark.artifact.objects import describe_all, rebuild_all, weights_of
from hvdspark.artifact.tables import take_over
from hvdspark.artifact.trust import Trust
from hvdspark.data.feed.loader import Batch
from hvdspark.errors import PersistenceError
from hvdspark.specs import TrainSpec
from hvdspark.train.diagnosis import is_about_the_driver

_FLAGS = ("training", "evaluating", "frozen", "requires_grad")


def warnings_about_saving(spec: TrainSpec, module: nn.Module, pickled: bytes, batch: Batch) -> list[str]:
    """A warning where `save` will refuse the fitted model; else none.

    The module is described and rebuilt, and copy and original are called in evaluation mode. Seeds torch's generator.
    There is one copy of the weights at a time.

    Args:
        pickled: the module without weights.
        batch: a few training rows.
    """
    try:
        descriptions, tensors = describe_all({"model": module}, weights_of(module))
        expected = _expected(spec, module, pickled, batch)
        copy: nn.Module = rebuild_all(descriptions, tensors, Trust(everything=True))["model"]
        if expected is not None:
            _check_outputs(spec, module, copy, batch, expected)
    except PersistenceError as error:
        return [f"the fitted model can be used, but save will refuse it: {error}"]
    return []


def state_besides_weights(module: nn.Module) -> tuple[Description, dict[str, Tensor]] | None:
    """What a module is beside its state dict: attributes, and buffers that are not persistent. None where unknown."""
    describer = Describer(weights_of(module))
    try:
        return _without_flags(describer.describe(module, type(module).__name__)), describer.tensors
    except PersistenceError:
        return None


def warnings_about_lost_state(before: tuple[Description, dict[str, Tensor]] | None, module: nn.Module) -> list[str]:
    """A warning where training has changed what the fitted model does not take over from the ranks; else none."""
    after = state_besides_weights(module)
    if before is None or after is None:
        return []
    difference = first_difference(before[0], after[0], type(module).__name__)
    changed_tensors = [key for key, tensor in before[1].items() if not same_bits(tensor, after[1].get(key, tensor))]
    if difference is None and changed_tensors:
        difference = f"values of {len(changed_tensors)} tensors that are no persistent buffers"
    if difference is None:
        return []
    return [
        f"training changed what is no weight of the module, and the fitted model has it as before: {difference}. "
        "Hint: register it as a buffer (register_buffer), if predictions depend on it"
    ]


def _without_flags(description: Any) -> Any:
    """A description without what says how a module is trained, which predictions do not depend on."""
    if isinstance(description, list):
        return [_without_flags(item) for item in description]
    if not isinstance(description, dict):
        return description
    return {key: _without_flags(item) for key, item in description.items() if key not in _FLAGS}


def _expected(spec: TrainSpec, module: nn.Module, pickled: bytes, batch: Batch) -> tuple[Tensor, ...] | None:
    """What the module returns in evaluation; None where the driver cannot call it."""
    try:
        return _outputs(spec, cloudpickle.loads(pickled), module, batch)
    except Exception as error:
        if is_about_the_driver(error):
            return None
        raise


def _check_outputs(
    spec: TrainSpec, module: nn.Module, copy: nn.Module, batch: Batch, expected: tuple[Tensor, ...]
) -> None:
    """PersistenceError where the rebuilt module does not give the same bits."""
    name = type(module).__name__
    try:
        found = _outputs(spec, copy, module, batch)
    except Exception as error:
        raise changed(f"the rebuilt module fails: {type(error).__name__}: {error}", name) from error
    if len(expected) != len(found) or not all(map(_close, expected, found)):
        raise changed("the rebuilt module predicts something else", name)


def _close(one: Tensor, other: Tensor) -> bool:
    # The states are equal bit for bit; a kernel may still add in another order where memory lies otherwise.
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


def _outputs(spec: TrainSpec, copy: nn.Module, original: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    take_over(original, copy)
    with torch.no_grad():
        torch.manual_seed(spec.seed)
        return forward(copy.eval(), inputs_of(batch.columns, spec.features, "cpu"), batch.rows, spec.features).tensors
