"""Whether predicted probabilities are as large as what was observed, and what a bias has to be for that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hvdspark.artifact.classes import BINARY
from hvdspark.artifact.forward import as_prediction
from hvdspark.collectives import Collective
from hvdspark.train.loss import RowLoss

# A loss that is higher by less may be a constant's, and chance.
_ABOVE = 1.02
# Beyond this ratio, and beyond what chance does, mean prediction and mean label are far apart.
_FAR = 1.2
_CHANCE = 4.0  # standard deviations
# Logits from -32 to 32 in steps of 1/256: what lies in one step is moved by less than 1/512 too much or too little.
_BINS, _STEPS = 1 << 14, 256.0


class Calibration:
    """Mean prediction beside mean label, and log loss beside that of a constant, of the rows that it was shown.

    It looks where there is one label with a binary loss and one number for each row; else it has nothing to say.

    Attributes:
        sums: float64 [4] on CPU: weighted predictions, labels and log losses, and the weights; to be added over ranks.
    """

    def __init__(self, loss: RowLoss, labels: int) -> None:
        self._logits = labels == 1 and loss.has_logits(0)
        self._output = loss.output_of(0) if labels == 1 and loss.name(0) in BINARY else None
        self.clear()

    def clear(self) -> None:
        """Forget what was shown."""
        self._sums = torch.zeros(4, dtype=torch.float64)

    @property
    def sums(self) -> Tensor:
        return self._sums.cpu()

    def restore(self, sums: Sequence[float]) -> None:
        """Go on from `sums` of before; [] is from nothing."""
        self.clear()
        if sums:
            self._sums = torch.tensor(sums, dtype=torch.float64)

    @torch.no_grad()
    def show(self, outputs: Sequence[Tensor], labels: Sequence[Tensor], weight: Tensor | None) -> None:
        """Add rows: outputs and labels as the loss takes them, weight [rows]. Waits for no device."""
        if self._output is None or self._output >= len(outputs):
            return
        output, label = as_prediction(outputs[self._output].detach()).double(), as_prediction(labels[0]).double()
        if output.dim() != 1 or output.shape != label.shape:
            return
        probability = torch.sigmoid(output) if self._logits else output
        kept = probability.clamp(1e-12, 1 - 1e-12)
        losses = -(label * kept.log() + (1.0 - label) * (-kept).log1p())
        weights = torch.ones_like(label) if weight is None else weight.double()
        parts = [(part * weights).sum() for part in (probability, label, losses)]
        self._sums = self._sums.to(output.device) + torch.stack([*parts, weights.sum()])


def warnings_from(sums: Tensor) -> list[str]:
    """What the sums of all ranks say that the user should know; nothing where there are none, or of one class."""
    predicted, observed, losses, weight = sums.tolist()
    rate = observed / weight if weight else 0.0
    if not 0.0 < rate < 1.0:
        return []
    found = []
    constant = -(rate * math.log(rate) + (1.0 - rate) * math.log1p(-rate))
    if losses / weight > _ABOVE * constant:
        found.append(
            f"the loss, {losses / weight:.4f}, is above {constant:.4f}, that of always predicting {rate:.4g}: the "
            "model knows less than the share of positive rows; train longer, or lower the learning rate"
        )
    ratio = max(predicted, 1e-300) / observed
    chance = _CHANCE * math.sqrt(weight * rate * (1.0 - rate))
    if not 1 / _FAR <= ratio <= _FAR and abs(predicted - observed) > chance:
        found.append(
            f"the mean prediction is {predicted / weight:.4g} where {rate:.4g} was observed: as probabilities they are "
            f"{ratio:.2g} times as large as they should be; train longer, or begin at the share of positive rows"
        )
    return found


def calibrate(bias: nn.Parameter, rows: Iterable[tuple[Tensor, Tensor, Tensor]], collective: Collective) -> None:
    """Collective. Move the bias of a logit so that the mean prediction over all rows is their mean label.

    Args:
        bias: one number that is added to the logit of every row.
        rows: this rank's logits, labels and weights, [rows] each.
    """
    counts, observed = torch.zeros(_BINS, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for logit, label, weight in rows:
        bins = ((logit.double() * _STEPS).floor().long() + _BINS // 2).clamp(0, _BINS - 1)
        counts += torch.bincount(bins.cpu(), weights=weight.double().cpu(), minlength=_BINS)
        observed += (label.double() * weight.double()).sum().cpu()
    sums = collective.allreduce_sum(torch.cat([counts, observed]), "train/calibration")
    counts, total = sums[:_BINS], sums[_BINS].item()
    if not 0.0 < total < counts.sum().item():
        return
    centres = (torch.arange(_BINS, dtype=torch.float64) - _BINS // 2 + 0.5) / _STEPS
    low, high = -64.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        if (torch.sigmoid(centres + middle) @ counts).item() < total:
            low = middle
        else:
            high = middle
    with torch.no_grad():
        bias.add_(middle)
