"""What holds for every architecture, whichever of its inputs are there."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from hvdspark.artifact.objects import describe, rebuild
from hvdspark.errors import ConfigurationError
from hvdspark.models import ARCHITECTURES, Architecture, make_model

DIM = 4
SIZES = [(3, 5), (0, 5), (3, 1), (3, 0), (0, 2)]  # numbers, fields
EVERY_SIZE = pytest.mark.parametrize(
    ("name", "numbers", "fields"), [(name, *sizes) for name in ARCHITECTURES for sizes in SIZES]
)


def inputs(rows: int, numbers: int, fields: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return (
        torch.randn(rows, numbers, generator=generator),
        torch.randn(rows, fields, DIM, generator=generator),
        torch.randn(rows, fields, generator=generator),
    )


def model(name: str, numbers: int = 3, fields: int = 5, dropout: float = 0.0) -> Architecture:
    torch.manual_seed(5)
    return make_model(name, numbers=numbers, fields=fields, dim=DIM, hidden=[16, 8], dropout=dropout)


@EVERY_SIZE
def test_one_logit_for_each_row(name: str, numbers: int, fields: int) -> None:
    module = model(name, numbers, fields)
    for rows in (0, 1, 7):
        assert module(*inputs(rows, numbers, fields)).shape == (rows,)


@EVERY_SIZE
def test_a_row_does_not_depend_on_the_others(name: str, numbers: int, fields: int) -> None:
    module = model(name, numbers, fields)
    batch = inputs(7, numbers, fields)
    alone = torch.cat([module(*(x[row : row + 1] for x in batch)) for row in range(7)])
    # matrix products of other shapes add in another order
    torch.testing.assert_close(module(*batch), alone, rtol=1e-5, atol=1e-5)


@EVERY_SIZE
def test_gradients_reach_every_parameter_and_every_input_that_is_used(name: str, numbers: int, fields: int) -> None:
    module = model(name, numbers, fields)
    values, vectors, weights = (x.requires_grad_() for x in inputs(64, numbers, fields))
    (module(values, vectors, weights) - 1.0).square().sum().backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.numel() > 0, parameter_name
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    if fields:
        assert (vectors.grad is not None) == module.uses_vectors
        assert (weights.grad is not None) == module.uses_weights


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_unused_inputs_may_be_empty(name: str) -> None:
    module = model(name)
    numbers, vectors, weights = inputs(7, 3, 5)
    expected = module(numbers, vectors, weights)
    nothing = torch.zeros(7, 0)
    assert torch.equal(
        module(numbers, vectors if module.uses_vectors else nothing, weights if module.uses_weights else nothing),
        expected,
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_autocast(name: str) -> None:
    module = model(name)
    batch = inputs(64, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = module(*batch)
    logits.float().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    exact = module(*batch).detach()
    # bfloat16 keeps 8 bits: a few units of 2**-8 of the largest value through a few layers
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=6 * 2**-8 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ["lr", "fm"])
def test_models_without_layers_stay_exact_under_autocast(name: str) -> None:
    module = model(name)
    batch = inputs(64, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = module(*batch)
    assert torch.equal(logits, module(*batch))


@EVERY_SIZE
def test_rebuilt_from_json(name: str, numbers: int, fields: int) -> None:
    module = model(name, numbers, fields, dropout=0.25)
    copy = rebuild(json.loads(json.dumps(describe(module, "model"))))
    assert repr(copy) == repr(module)
    copy.load_state_dict(module.state_dict())
    batch = inputs(7, numbers, fields)
    assert torch.equal(copy.eval()(*batch), module.eval()(*batch))
    assert describe(copy.train(), "model") == describe(module.train(), "model")


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("lr", "fm")])
def test_dropout_only_in_training(name: str) -> None:
    module = model(name, dropout=0.5)
    batch = inputs(64, 3, 5)
    assert not torch.equal(module(*batch), module(*batch))
    module.eval()
    assert torch.equal(module(*batch), module(*batch))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_same_seed_same_weights(name: str) -> None:
    first, second = model(name).state_dict(), model(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("sizes", [(0, 0), (-1, 5), (3, -1), (3, 2.0)])
def test_impossible_sizes_are_refused(name: str, sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError, match=r"(no features|out of range).*Hint"):
        model(name, *sizes)
