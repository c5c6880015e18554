"""Whether a module ends in what its loss applies by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvdspark.train.loss import RowLoss

# What a layer or function is called as a node of autograd.
_NAMES = {
    "SigmoidBackward0": "Sigmoid",
    "HardsigmoidBackward0": "Hardsigmoid",
    "SoftmaxBackward0": "Softmax",
    "LogSoftmaxBackward0": "LogSoftmax",
    "LogSigmoidBackward0": "LogSigmoid",
    "ReluBackward0": "ReLU",
    "SoftplusBackward0": "Softplus",
}
# Only where the numbers of an output stand or which type they have.
_PASSED_OVER = ("View", "Squeeze", "Unsqueeze", "Select", "Slice", "ToCopy", "Reshape", "Alias", "Clone", "Transpose")
# A log-softmax of log-probabilities is these log-probabilities: LogSoftmax does no harm under cross_entropy.
_WRONG = {
    "bce_with_logits": ("Sigmoid", "Hardsigmoid", "Softmax", "LogSoftmax", "LogSigmoid", "ReLU", "Softplus"),
    "cross_entropy": ("Sigmoid", "Hardsigmoid", "Softmax", "LogSigmoid"),
}
_INSTEAD = {"bce_with_logits": ' (or keep a Sigmoid, with loss="bce")', "cross_entropy": ""}


def warnings_about(loss: RowLoss, outputs: Sequence[Tensor], labels: Sequence[str]) -> list[str]:
    """A sentence for each output whose last layer squeezes what the loss takes as a logit, or as a log-probability.

    Args:
        outputs: of a forward pass with gradients.
    """
    found = []
    for position, label in enumerate(labels):
        name = loss.name(position)
        if name is None:
            continue
        output = outputs[loss.output_of(position)]
        last = last_of(output)
        if last in _WRONG.get(name, ()):
            found.append(
                f"the output for {label!r} ends in {last}, but {name} takes any number and squeezes it by itself: "
                f"the module can hardly learn. Drop the last {last}{_INSTEAD[name]}"
            )
        if name == "nll" and output.dim() > 1 and not _is_log_probability(output):
            found.append(
                f"the output for {label!r} is no log-probability, which nll takes: end the module in "
                'LogSoftmax(dim=1), or use loss="cross_entropy", which takes any number'
            )
    return found


def last_of(output: Tensor) -> str | None:
    """The squeezing function that made this output, if it was one."""
    node = output.grad_fn
    while node is not None and node.name().startswith(_PASSED_OVER):
        node = node.next_functions[0][0] if node.next_functions else None
    return None if node is None else _NAMES.get(node.name())


def _is_log_probability(output: Tensor) -> bool:
    total = output.detach().double().logsumexp(dim=1)
    return bool(torch.all(total.abs() < 1e-3))
