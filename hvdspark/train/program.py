"""What training is asked to do beside the plain data of `TrainSpec`, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hvdspark.artifact.forward import OutputSpec
from hvdspark.rank_limit import RankLimit
from hvdspark.train.callbacks import Callback


@dataclass
class Program:
    """The Python objects of a training run, pickled as one piece so that the optimizer keeps pointing at the module.

    Training works on these objects in place: in the process that called `train`, the module ends with the best weights.

    Attributes:
        module: called with one tensor for each feature column; returns a tensor, or a tuple, list or dict of tensors.
        loss: a name ("bce_with_logits", "mse", ...), a torch loss module, a callable, or one of these for each output.
        optimizer: a name ("adam", ...), an Optimizer class, a functools.partial of one, a callable taking the
            parameters, or an Optimizer made on the module's own parameters.
        loss_weights: factor of each output's loss in the sum; empty means 1 for each.
        schedule: optimizer step (from 0) -> factor of the learning rate; replaces `TrainSpec.schedule`.
        callbacks: run on every rank.
        probabilities: turns an output into probabilities for logloss and accuracy; needed only where the loss does
            not say it (a callable).
        output_bias: of the module, one number that is added to the logit of every row: in the end it is moved so that
            the mean prediction over the training rows is their mean label. For one label and "bce_with_logits".
    """

    module: nn.Module
    loss: Any
    optimizer: Any = "adam"
    loss_weights: Sequence[float] = ()
    schedule: Callable[[int], float] | None = None
    callbacks: Sequence[Callback] = ()
    probabilities: Callable[[Tensor], Tensor] | None = None
    output_bias: nn.Parameter | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a finished training run knows; plain data that survives `specs.to_json` / `from_json`.

    Attributes:
        history: one row for each epoch (see `history.history_row`).
        best_epoch: index in `history` of the epoch whose weights are the result.
        epochs_run: rows of `history`; less than asked for after an early stop.
        stopped: why training ended before its last epoch: "patience", "callback" or None.
        model_path: directory of the final weights, relative to the store: `runs/<run_id>/model`.
        outputs: what the module returns.
        precision: "float32" or "bfloat16", as resolved.
        parameters: number of trainable and frozen scalars of the module.
        seconds: wall seconds by phase, all epochs of this process, as rank 0 saw them.
        warnings: things the user should know, one sentence each.
        loss: name of the only label's loss, which says what the output means; "" for other losses and several labels.
        warm_start: where the run began with a trained model: its "source", and what was "kept", "fresh" and "dropped"
            (`artifact.warm_start.Compared`); else None.
        goodput: what the fit had of its time: the values of `events.GoodputMeasured` by name; None where nobody has
            measured.
        memory: what the process of rank 0 may use; None where it has no limit.
    """

    history: tuple[dict[str, Any], ...]
    best_epoch: int
    epochs_run: int
    stopped: str | None
    model_path: str
    outputs: tuple[OutputSpec, ...]
    precision: str
    parameters: int
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()
    loss: str = ""
    warm_start: dict[str, Any] | None = None
    goodput: dict[str, Any] | None = None
    memory: RankLimit | None = None
