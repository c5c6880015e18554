"""What torch's own losses take, and what their reductions divide by.

A rank sees a part of a global batch, so a loss is taken apart: a numerator for each row, and what the sum of the
numerators is divided by. `reduction="mean"` divides by rows, except where labels are ignored or classes have weights:
then by the sum of the rows' own weights. `reduction="sum"` divides by nothing.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import _reduction as _Reduction

from hvdspark.checks import one_of
from hvdspark.errors import ConfigurationError

ROWS, LABELS, NOTHING = "rows", "labels", "nothing"


@dataclass(frozen=True)
class Form:
    """What one of torch's losses is called with.

    Attributes:
        function: the functional form, called as function(output, target, ...).
        name: the name under which hvdspark knows it, or None.
        target: "values" (the output's shape and dtype), "classes" (int64 [rows, ...], or the probabilities of all),
            "class" (int64 [rows]), "class_list" (int64 [rows, classes], padded with -1) or "row" (one number a row).
        outputs: how many outputs of the module it takes.
        target_at: position of the target among the arguments.
    """

    function: Callable[..., Tensor]
    name: str | None = None
    target: str = "values"
    outputs: int = 1
    target_at: int = 1

    def __call__(self, outputs: tuple[Tensor, ...], target: Tensor, call: Callable[..., Tensor]) -> Tensor:
        return call(*outputs[: self.target_at], target, *outputs[self.target_at :])


_FORMS: dict[type[nn.Module], Form] = {
    nn.BCEWithLogitsLoss: Form(F.binary_cross_entropy_with_logits, "bce_with_logits"),
    nn.BCELoss: Form(F.binary_cross_entropy, "bce"),
    nn.CrossEntropyLoss: Form(F.cross_entropy, "cross_entropy", "classes"),
    nn.NLLLoss: Form(F.nll_loss, "nll", "classes"),
    nn.MSELoss: Form(F.mse_loss, "mse"),
    nn.L1Loss: Form(F.l1_loss, "l1"),
    nn.HuberLoss: Form(F.huber_loss, "huber"),
    nn.SmoothL1Loss: Form(F.smooth_l1_loss, "smooth_l1"),
    nn.PoissonNLLLoss: Form(F.poisson_nll_loss, "poisson_nll"),
    nn.KLDivLoss: Form(F.kl_div),
    nn.HingeEmbeddingLoss: Form(F.hinge_embedding_loss),
    nn.SoftMarginLoss: Form(F.soft_margin_loss),
    nn.MultiLabelSoftMarginLoss: Form(F.multilabel_soft_margin_loss),
    nn.MultiLabelMarginLoss: Form(F.multilabel_margin_loss, target="class_list"),
    nn.MultiMarginLoss: Form(F.multi_margin_loss, target="class"),
    nn.CosineEmbeddingLoss: Form(F.cosine_embedding_loss, target="row", outputs=2, target_at=2),
    nn.MarginRankingLoss: Form(F.margin_ranking_loss, outputs=2, target_at=2),
    nn.GaussianNLLLoss: Form(F.gaussian_nll_loss, outputs=2),
}
_OF_FUNCTION = {form.function: form for form in _FORMS.values()}
NAMED = {form.name: form for form in _FORMS.values() if form.name}

_TRIPLET = (
    "it takes no label: give a callable (outputs, labels), such as "
    "lambda outputs, labels: torch.nn.functional.triplet_margin_loss(*outputs, reduction='none')"
)
_CTC = "its inputs are [time, rows, classes] with lengths beside them: give a callable (outputs, labels) -> [rows]"
_LAYER = "it is a layer: make it a part of the model, which returns the loss of each row, and give a callable as loss"
_REFUSED: dict[Any, str] = {
    nn.TripletMarginLoss: _TRIPLET,
    nn.TripletMarginWithDistanceLoss: _TRIPLET,
    nn.CTCLoss: _CTC,
    F.triplet_margin_loss: _TRIPLET,
    F.triplet_margin_with_distance_loss: _TRIPLET,
    F.ctc_loss: _CTC,
    nn.AdaptiveLogSoftmaxWithLoss: _LAYER,
    **{getattr(nn, name): _LAYER for name in ("LinearCrossEntropyLoss",) if hasattr(nn, name)},  # since torch 2.13
}


@dataclass(frozen=True)
class Parsed:
    """One loss as the user gave it, taken apart.

    Attributes:
        call: the loss without its reduction.
        form: what it is called with; None for a user's own.
        name: under which its probabilities and metrics are known, or None.
        over: how the elements of a row become one number: "mean" or "sum".
        divisor: what the sum of the rows is divided by: ROWS, LABELS (the sum of the rows' own weights) or NOTHING.
        ignore_index, class_weight: of a loss with class indices.
        shape_is_known: whether output and label must have one shape.
        is_plain_callable: neither a name nor a torch module; it may see all outputs and labels at once.
    """

    call: Callable[..., Tensor]
    form: Form | None
    name: str | None = None
    over: str = "mean"
    divisor: str = ROWS
    ignore_index: int | None = None
    class_weight: Tensor | None = None
    row_options: tuple[Tensor, ...] = ()
    shape_is_known: bool = True
    is_plain_callable: bool = False


def parse(loss: Any, device: str) -> Parsed:
    """Take a loss apart.

    Args:
        loss: a name, a torch loss module, or a callable.
        device: where tensors of the loss (class weights) go.

    Raises:
        ConfigurationError: unknown, or it cannot be the same for parts of a batch as for the whole.
    """
    if isinstance(loss, str):
        one_of("loss", loss, sorted(NAMED), "loss")
        return _functional(NAMED[loss], {}, device, is_plain_callable=False)
    if isinstance(loss, nn.Module):
        return _module(loss, device)
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        raise ConfigurationError(
            "the loss is a class", value=loss.__name__, where="loss", hint=f"give an instance: {loss.__name__}()"
        )
    if not callable(loss):
        raise ConfigurationError(
            "the loss must be a name, a torch loss module or a callable", value=type(loss).__name__, where="loss"
        )
    function: Any = loss
    options: dict[str, Any] = {}
    while isinstance(function, functools.partial) and not function.args:
        function, options = function.func, {**function.keywords, **options}
    _check_refused(function, getattr(function, "__name__", str(function)))
    if _is_key(function) and function in _OF_FUNCTION:
        return _functional(_OF_FUNCTION[function], options, device, is_plain_callable=True)
    return _own_callable(loss)


def without_ignored(parsed: Parsed, minimum: float | None) -> Parsed:
    """The same loss, divided by rows, where all labels are known to count 1: none is as small as what is ignored."""
    counts_alike = parsed.divisor == LABELS and parsed.class_weight is None and parsed.ignore_index is not None
    if not counts_alike or minimum is None or minimum <= (parsed.ignore_index or 0):
        return parsed
    return replace(parsed, divisor=ROWS, over="mean")


def check_loss(loss: Any, module: nn.Module) -> None:
    """Raise ConfigurationError where a loss has parameters to train that are not the model's: nothing would."""
    models = {id(parameter) for parameter in module.parameters()}
    for part in loss if isinstance(loss, list | tuple) else (loss,):
        own = part.parameters() if isinstance(part, nn.Module) else ()
        if any(parameter.requires_grad and id(parameter) not in models for parameter in own):
            raise ConfigurationError(
                "the loss has parameters of its own, and nothing would train them",
                value=type(part).__name__,
                where="loss",
                hint="make it a part of the model, which returns the loss of each row, and give a callable as loss; "
                "what is meant to stay as it is needs requires_grad_(False)",
            )


def row_weights(parsed: Parsed, target: Tensor) -> Tensor:
    """What each element of int64 class indices counts: 0 where ignored, else the weight of its class, else 1."""
    assert parsed.ignore_index is not None  # of every loss with class indices
    ignored = target.eq(parsed.ignore_index)
    if parsed.class_weight is None:
        return (~ignored).to(torch.float32)
    return parsed.class_weight[target.masked_fill(ignored, 0)].masked_fill(ignored, 0.0)


def _module(loss: nn.Module, device: str) -> Parsed:
    name = type(loss).__name__
    for base in type(loss).__mro__:
        _check_refused(base, name)
    # Not a deep copy: a loss may hold the model itself, to penalise its weights.
    own = copy.copy(loss)
    if device != "cpu":
        own.to(device)
    if not hasattr(own, "reduction"):
        return Parsed(own, None, shape_is_known=False, is_plain_callable=True)
    reduction = str(own.reduction)
    own.reduction = "none"  # type: ignore[assignment]
    known = next((base for base in type(loss).__mro__ if base in _FORMS), None)
    if known is None:
        shape_is_known = isinstance(loss, nn.modules.loss._Loss)
        return Parsed(own, None, divisor=_divisor(reduction), over=_over(reduction), shape_is_known=shape_is_known)
    options = {key: getattr(own, key) for key in ("weight", "pos_weight", "ignore_index") if hasattr(own, key)}
    form = _FORMS[known]
    if type(loss).forward is not vars(known)["forward"] and form.target == "classes" and reduction == "mean":
        if options.get("weight") is not None or options.get("ignore_index", -100) != -100:
            raise ConfigurationError(
                f"what the mean of a {known.__name__} with a forward of its own is divided by is not known",
                value=name,
                where="loss",
                hint="give a callable (output, label) -> [rows] that weighs classes itself, drop weight and "
                "ignore_index, or use reduction='sum'",
            )
        return Parsed(own, form, form.name)
    call = _nan_for_nan(own) if form.name == "bce" else own
    return _known(form, call, reduction, options, is_plain_callable=False)


def _functional(form: Form, given: Mapping[str, Any], device: str, *, is_plain_callable: bool) -> Parsed:
    options: dict[str, Any] = {
        key: value.to(device) if isinstance(value, Tensor) else value for key, value in given.items()
    }
    reduction = str(options.pop("reduction", "mean"))
    legacy = options.pop("size_average", None), options.pop("reduce", None)
    if legacy != (None, None):
        reduction = _Reduction.legacy_get_string(*legacy)
    if options.get("weight") is not None and form.name in ("mse", "l1", "huber", "smooth_l1"):
        raise ConfigurationError(
            "weight is one number for each element of one batch, and batches are cut among ranks",
            value=form.name,
            where="loss",
            hint="put the weights of rows into a column and set weight_column",
        )
    call = functools.partial(form.function, **options, reduction="none")
    return _known(
        form,
        _nan_for_nan(call) if form.name == "bce" else call,
        reduction,
        options,
        is_plain_callable=is_plain_callable,
    )


def _known(
    form: Form, call: Callable[..., Tensor], reduction: str, options: Mapping[str, Any], *, is_plain_callable: bool
) -> Parsed:
    if reduction not in ("none", "mean", "sum") and not (reduction == "batchmean" and form.function is F.kl_div):
        raise ConfigurationError("unknown reduction", value=reduction, where="loss", hint="mean, sum or none")
    classes = form.target == "classes"
    divisor = LABELS if classes and reduction != "sum" else _divisor(reduction)
    weights = (options.get("weight"), options.get("pos_weight"))
    return Parsed(
        call,
        form,
        form.name,
        over="sum" if divisor == LABELS else _over(reduction),
        divisor=divisor,
        ignore_index=options.get("ignore_index", -100) if classes else None,
        class_weight=options.get("weight") if classes else None,
        row_options=() if form.target != "values" else tuple(w for w in weights if isinstance(w, Tensor)),
        is_plain_callable=is_plain_callable,
    )


def _own_callable(loss: Callable[..., Any]) -> Parsed:
    """A user's callable: with an argument `reduction` it gives a loss for each row, and its default says what the user
    means by it; without one it is called as it is."""
    try:
        parameter = inspect.signature(loss).parameters.get("reduction")
    except (TypeError, ValueError):  # builtins without a signature
        parameter = None
    if parameter is None:
        return Parsed(loss, None, shape_is_known=False, is_plain_callable=True)
    reduction = str(parameter.default)

    def without_reduction(output: Any, target: Any) -> Tensor:
        value: Tensor = loss(output, target, reduction="none")
        return value

    return Parsed(
        without_reduction,
        None,
        over=_over(reduction),
        divisor=_divisor(reduction),
        shape_is_known=False,
        is_plain_callable=True,
    )


def _divisor(reduction: str) -> str:
    return NOTHING if reduction == "sum" else ROWS


def _over(reduction: str) -> str:
    return "sum" if reduction in ("sum", "batchmean") else "mean"


def _check_refused(kind: Any, name: str) -> None:
    if _is_key(kind) and kind in _REFUSED:
        raise ConfigurationError("this loss cannot be used as it is", value=name, where="loss", hint=_REFUSED[kind])


def _is_key(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _nan_for_nan(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(output: Tensor, target: Tensor) -> Tensor:
        # torch raises on NaN here, without the cause; the loop reports divergence.
        return torch.full_like(output, torch.nan) if torch.isnan(output).any() else loss(output, target)

    return call
