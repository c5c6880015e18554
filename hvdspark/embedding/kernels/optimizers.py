"""Sparse optimizers: pure updates of the rows that a step touched, each row once, in float32.

State is one tensor for each name in `SparseOptimizer.state_shapes`, its first dimension that of the rows. Duplicates
must have been summed before: the optimizers are not linear in the gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.config import LAST, SparseOptimizer


def initial_state(optimizer: SparseOptimizer, rows: Tensor) -> dict[str, Tensor]:
    """State of rows that were never updated. float32 [n, D] -> each float32 [n, ...]."""
    if optimizer.last is not None:
        last = initial_state(optimizer.last, rows[:, -1:])
        return initial_state(optimizer.of_others(), rows[:, :-1]) | {LAST + name: some for name, some in last.items()}
    shapes = optimizer.state_shapes(rows.shape[1])
    state = {name: torch.zeros((len(rows), *shape)) for name, shape in shapes.items()}
    if "accumulator" in state:
        state["accumulator"].fill_(optimizer.initial_accumulator)
    if optimizer.name == "ftrl":
        # What the closed form of `_ftrl` turns into the rows as they are; with zeros it would forget them at once.
        strength = optimizer.initial_accumulator**0.5 / optimizer.learning_rate + optimizer.l2
        state["linear"] = -rows * strength - rows.sign() * optimizer.l1
        state["rate"].fill_(optimizer.learning_rate)
    return state


def update(optimizer: SparseOptimizer, rows: Tensor, state: dict[str, Tensor], gradients: Tensor) -> None:
    """Update rows and state in place; `gradients` may be overwritten.

    Args:
        rows: gathered rows, float32 [n, D].
        state: gathered state, see `SparseOptimizer.state_shapes`; float32 [n, ...].
        gradients: of the global mean loss, summed over duplicates, float32 [n, D].
    """
    if optimizer.last is not None:
        last = {name.removeprefix(LAST): values for name, values in state.items() if name.startswith(LAST)}
        update(optimizer.of_others(), rows[:, :-1], state, gradients[:, :-1])
        update(optimizer.last, rows[:, -1:], last, gradients[:, -1:])
        return
    gradients = clipped(optimizer, gradients)
    if optimizer.l2 and optimizer.name != "ftrl":
        gradients = gradients.add(rows, alpha=optimizer.l2)
    _UPDATES[optimizer.name](optimizer, rows, state, gradients)


def clipped(optimizer: SparseOptimizer, gradients: Tensor) -> Tensor:
    """Gradients of rows, none longer than the optimizer allows. float32 [n, D] -> [n, D], maybe the same."""
    if optimizer.clip_norm is None:
        return gradients
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    return gradients * (optimizer.clip_norm / norms.clamp_min(optimizer.clip_norm))


def corrections(beta1: float, beta2: float, steps: Tensor) -> tuple[Tensor, Tensor]:
    """What adam's moments are too small by after so many steps: of the mean, and of the root of the variance.

    float64 of any shape -> float32; float32 has no digits left of 1 - beta2**1.
    """
    return (1 - beta1**steps).float(), (1 - beta2**steps).sqrt().float()


def _sgd(optimizer: SparseOptimizer, rows: Tensor, state: dict[str, Tensor], gradients: Tensor) -> None:
    rows.sub_(gradients, alpha=optimizer.learning_rate)


def _adagrad(optimizer: SparseOptimizer, rows: Tensor, state: dict[str, Tensor], gradients: Tensor) -> None:
    """Duchi, Hazan, Singer: JMLR 2011."""
    accumulator = state["accumulator"].addcmul_(gradients, gradients)
    rows.addcdiv_(gradients, _plus_eps(_root(accumulator), optimizer), value=-optimizer.learning_rate)


def _rowwise_adagrad(optimizer: SparseOptimizer, rows: Tensor, state: dict[str, Tensor], gradients: Tensor) -> None:
    """One accumulator for each row, of the mean square of its gradient (Mudigere and others: arXiv 2104.05158)."""
    accumulator = state["accumulator"].add_(gradients.square().mean(dim=1))
    scale = _plus_eps(_root(accumulator), optimizer)
    rows.addcdiv_(gradients, scale.unsqueeze(1), value=-optimizer.learning_rate)


def _adam(optimizer: SparseOptimizer, rows: Tensor, state: dict[str, Tensor], gradients: Tensor) -> None:
    """Kingma, Ba: ICLR 2015; lazy: a row's moments and its step count rest while no gradient reaches it."""
    mean, variance, steps = state["mean"], state["variance"], state["steps"]
    steps.add_(1)
    mean.lerp_(gradients, 1 - optimizer.beta1)
    variance.mul_(optimizer.beta2).addcmul_(gradients, gradients, value=1 - optimizer.beta2)
    counts = steps.double().unsqueeze(1)
    mean_correction, variance_correction = corrections(optimizer.beta1, optimizer.beta2, counts)
    denominator = _plus_eps(_root(variance).div_(variance_correction), optimizer).mul_(mean_correction)
    rows.addcdiv_(mean, denominator, value=-optimizer.learning_rate)


def _ftrl(optimizer: SparseOptimizer, rows: Tensor, state: dict[str, Tensor], gradients: Tensor) -> None:
    """FTRL-proximal, McMahan and others: KDD 2013, algorithm 1; `initial_accumulator` has the role of its beta.

    A row is a function of its state and the learning rate. So that a schedule changes steps and not rows, the rate of
    the last update is part of the state: where it was another one, `linear` becomes that of the same row at this one.
    """
    accumulator, linear = state["accumulator"], state["linear"]
    root = _root(accumulator)
    _change_rate(optimizer, linear, root, state["rate"])
    accumulator.addcmul_(gradients, gradients)
    new_root = _root(accumulator)
    linear.add_(gradients).sub_((new_root - root).div_(optimizer.learning_rate).mul_(rows))
    strength = new_root.div_(optimizer.learning_rate).add_(optimizer.l2)
    # soft threshold: exact zeros where |linear| <= l1, whose sign torch leaves to chance: -0 + 0 is 0
    rows.copy_(torch.nn.functional.softshrink(linear, optimizer.l1)).div_(strength).neg_().add_(0.0)


def _change_rate(optimizer: SparseOptimizer, linear: Tensor, root: Tensor, rates: Tensor) -> None:
    """linear -> what gives the same rows at the optimizer's rate as it gave at `rates`, which become that; in place."""
    rate = rates.new_tensor(optimizer.learning_rate)
    other = rates != rate
    if not bool(other.any()):
        return
    chosen = other.nonzero().squeeze(1)
    some, squares = linear[chosen].double(), root[chosen].double()
    # Of what lies beyond the threshold; where nothing does, the row is 0 at any rate.
    beyond = torch.nn.functional.softshrink(some, optimizer.l1)
    old = squares / rates[chosen].double().unsqueeze(1) + optimizer.l2
    new = squares / rate.double() + optimizer.l2
    linear[chosen] = (some + beyond * (new / old - 1)).float().add_(0.0)
    rates.fill_(rate)


def _root(values: Tensor) -> Tensor:
    """Rounded as IEEE 754 has it, alike on every processor: that of torch is MKL's, whose last bit may be another."""
    return torch.from_numpy(np.sqrt(values.numpy()))


def _plus_eps(denominator: Tensor, optimizer: SparseOptimizer) -> Tensor:
    """In place; and no step, instead of 0 / 0, where eps is 0 and there was never a gradient but 0."""
    return denominator.add_(optimizer.eps) if optimizer.eps else denominator.masked_fill_(denominator == 0, torch.inf)


_UPDATES = {
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "adam": _adam,
    "ftrl": _ftrl,
}
