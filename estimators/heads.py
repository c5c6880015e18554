"""What the last layer of a module must return for a label, and the loss that suits it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hvdspark.artifact.classes import BINARY
from hvdspark.checks import label_in_words
from hvdspark.errors import ConfigurationError, DataError
from hvdspark.specs import ColumnSpec
from hvdspark.train.last_layer import last_of
from hvdspark.train.rehearsal import is_lazy


@dataclass(frozen=True)
class LabelClasses:
    """The classes of a label.

    Attributes:
        count: how many there are.
        source: who says so, for messages.
        exact: whether the user says so.
        smallest: label that was seen, where that is known and nobody says how many classes there are.
    """

    count: int
    source: str
    exact: bool = False
    smallest: float | None = None


def count_classes(label: ColumnSpec, metadata: Mapping[str, Any], given: int | None = None) -> LabelClasses:
    """How many classes a label has: what the user says, else the column's metadata, else the rows.

    Args:
        label: with its smallest and largest value where they are known.
        metadata: of the column in the DataFrame, where Spark ML keeps attributes.
        given: by the user.

    Raises:
        DataError: labels that are no classes 0, 1, ..., or more of them than there are said to be.
    """
    name, low, high = label.name, label.minimum, label.maximum
    if low is not None and low < 0:
        raise DataError(
            "labels of classes count from 0",
            value=f"the smallest is {label_in_words(low)}",
            where=f"column {name!r}",
            hint=f"StringIndexer makes classes of any values, (F.col({name!r}) > 0).cast('int') of -1 and 1; a label "
            "that is a quantity is for TorchRegressor",
        )
    if high is not None and high > 1 and high != math.floor(high):
        raise DataError(
            "labels of classes are whole numbers: 0, 1, ...",
            value=f"the largest is {label_in_words(high)}",
            where=f"column {name!r}",
            hint="StringIndexer makes classes of any values; a label that is a quantity is for TorchRegressor",
        )
    seen = 2 if high is None else max(2, math.ceil(high) + 1)
    attribute = metadata.get("ml_attr", {})
    named = len(attribute.get("vals", ())) or attribute.get("num_vals", 0)
    if given is not None:
        found = LabelClasses(given, "numClasses", exact=True)
    elif named >= 2:
        found = LabelClasses(named, f"the metadata of column {name!r}")
    else:
        source = f"the largest label in column {name!r}, {label_in_words(high)}" if high is not None else "a guess"
        return LabelClasses(seen, source, smallest=low)
    if seen > found.count:
        raise DataError(
            f"labels of {found.count} classes are 0 to {found.count - 1}, says {found.source}",
            value=None if high is None else f"the largest is {label_in_words(high)}",
            where=f"column {name!r}",
            hint="classes count from 0: subtract 1 where they count from 1, or set numClasses to what there is",
        )
    return found


def check_classes(module: nn.Module, outputs: Sequence[Tensor], classes: LabelClasses) -> int:
    """How many numbers a classifier's module returns for each row: 1 (of two classes), or one for each class.

    Args:
        outputs: what it returned for some rows.

    Raises:
        ConfigurationError: what it returns does not suit the classes.
    """
    width = _width(outputs)
    count = classes.count
    wanted = "1 or 2" if count == 2 else str(count)
    if width is None:
        raise ConfigurationError(
            "a classifier's module must return one tensor: [rows] or [rows, 1] for two classes, else [rows, classes]",
            value=_shapes(outputs),
            where=type(module).__name__,
            hint="return that tensor alone; TorchEstimator takes modules that return others",
        )
    if (width == 1 and count != 2) or 1 < width < count or (classes.exact and width not in (1, count)):
        alternative = "" if classes.exact else "; for a label that is a quantity use TorchRegressor"
        if classes.smallest == 1:
            alternative += f". Or subtract 1 from the label: classes count from 0, and these from {classes.smallest:g}"
        raise ConfigurationError(
            f"the module returns {_numbers(width)} for each row, and there are {count} classes, says {classes.source}",
            value=f"shape {_shapes(outputs)}",
            where=type(module).__name__,
            hint=f"let it return {wanted}{_last_linear(module, width, count)}{alternative}",
        )
    return width


def class_loss(output: Tensor, width: int) -> str:
    """The loss that suits what a classifier's module returns.

    Args:
        output: of a forward pass with gradients.
        width: numbers for each row.
    """
    if width > 1:
        return "cross_entropy"
    return "bce" if last_of(output) == "Sigmoid" else "bce_with_logits"


def check_loss_of_width(module: nn.Module, loss: str, width: int) -> None:
    """ConfigurationError where a loss that the user has set is for another number of outputs.

    Args:
        loss: its name; "" where it has none of those known.
    """
    if loss and (loss in BINARY) != (width == 1):
        takes = "one number, for the second of two classes" if loss in BINARY else "one number for each class"
        other = 2 if width == 1 else 1
        raise ConfigurationError(
            f"{loss} takes {takes}, and the module returns {_numbers(width)} for each row",
            value=loss,
            where=f"loss and {type(module).__name__}",
            hint=f"leave loss unset, which suits the module, or let it return {other}"
            + _last_linear(module, width, other),
        )


def check_regression(module: nn.Module, outputs: Sequence[Tensor]) -> None:
    """ConfigurationError where a regressor's module does not return one number for each row."""
    width = _width(outputs)
    if width == 1:
        return
    raise ConfigurationError(
        "a regressor's module must return one number for each row: [rows] or [rows, 1]",
        value=f"shape {_shapes(outputs)}",
        where=type(module).__name__,
        hint=f"let it return 1{_last_linear(module, width, 1)}; for a label of classes use TorchClassifier, for "
        "several labels or outputs TorchEstimator",
    )


def _width(outputs: Sequence[Tensor]) -> int | None:
    """Numbers for each row; None where it is not one tensor of at most two dimensions, or an empty one."""
    if len(outputs) != 1 or outputs[0].dim() > 2:
        return None
    return (outputs[0].shape[1] or None) if outputs[0].dim() == 2 else 1


def _shapes(outputs: Sequence[Tensor]) -> str:
    return ", ".join(f"[{', '.join(['rows', *map(str, output.shape[1:])])}]" for output in outputs)


def _numbers(width: int) -> str:
    return "one number" if width == 1 else f"{width} numbers"


def _last_linear(module: nn.Module, width: int | None, wanted: int) -> str:
    """What to write instead of the last layer that may have made so many numbers."""
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not layers or layers[-1][1].out_features != width:
        return ""
    name, layer = layers[-1]
    place = f", as layer {name!r}" if name else ""
    kind = "LazyLinear({})" if is_lazy(layer) else f"Linear({layer.in_features}, {{}})"
    return f": nn.{kind.format(wanted)} instead of nn.{kind.format(width)}{place}"
