"""Every loss of torch.nn with its options, against plain torch on whole batches: one rank, and several with parts."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import loss as torch_losses

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.data.feed.loader import Batch
from hvdspark.errors import ConfigurationError
from hvdspark.specs import DatasetSpec, RowGroups, TrainSpec
from hvdspark.store import Store
from hvdspark.train.check import check_program
from hvdspark.train.loop import train
from hvdspark.train.loss import RowLoss
from hvdspark.train.program import Program
from hvdspark.train.report import Reporter
from hvdspark.train.run import Run
from hvdspark.train.step import GradientStep
from tests.unit.train.datasets import train_spec, write_dataset
from tests.unit.train.toys import train_on_threads

ROWS, WIDTH, STEPS = 12, 4, 3
# For each step the rows of a global batch that each rank has: unequal, and none.
CUTS = {1: ([12], [12], [12]), 3: ([4, 5, 3], [0, 11, 1], [12, 0, 0])}

DRAWN = torch.Generator().manual_seed(5)
X = torch.randn(STEPS, ROWS, 3, generator=DRAWN)
WEIGHT = torch.tensor([[2.0, 0.0, 0.5, 1.0] * 3] * STEPS)
LABELS: dict[str, Tensor] = {
    "values": torch.randn(STEPS, ROWS, WIDTH, generator=DRAWN),
    "value": torch.randn(STEPS, ROWS, generator=DRAWN),
    "counts": torch.randint(0, 5, (STEPS, ROWS, WIDTH), generator=DRAWN).float(),
    "zero-one": torch.randint(0, 2, (STEPS, ROWS, WIDTH), generator=DRAWN).float(),
    "click": torch.randint(0, 2, (STEPS, ROWS), generator=DRAWN).float(),
    "signs": torch.randint(0, 2, (STEPS, ROWS, WIDTH), generator=DRAWN).float() * 2 - 1,
    "sign": torch.randint(0, 2, (STEPS, ROWS), generator=DRAWN).float() * 2 - 1,
    "class": torch.randint(0, WIDTH, (STEPS, ROWS), generator=DRAWN),
    "places": torch.randint(0, WIDTH, (STEPS, ROWS, 5), generator=DRAWN),
    "probabilities": torch.softmax(torch.randn(STEPS, ROWS, WIDTH, generator=DRAWN), dim=2),
    "class_list": torch.tensor([[1, 3, -1, 0], [2, -1, 1, 0], [0, 1, 2, 3]] * 4).expand(STEPS, -1, -1).clone(),
}
LABELS["ignored"] = torch.where(LABELS["class"] == 1, -100, LABELS["class"])
CLASSES = torch.tensor([0.5, 2.0, 1.0, 3.0])


class Net(nn.Module):
    """x [rows, 3] -> what a loss takes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layer = nn.Linear(3, {"places": 20, "two": 8, "pair": 2, "one": 1, "flat": 1}.get(kind, WIDTH))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        output = self.layer(x)
        if self.kind == "places":
            return output.reshape(-1, WIDTH, 5)
        if self.kind in ("two", "pair"):
            return output.chunk(2, dim=1)
        if self.kind == "variance":
            return output, output.square() + 0.1
        if self.kind == "flat":
            return output[:, 0]
        return {"sigmoid": torch.sigmoid, "log": functools.partial(torch.log_softmax, dim=1)}.get(
            self.kind, lambda value: value
        )(output)


def case(loss: Any, label: str, kind: str = "", **options: Any) -> Any:
    name = getattr(loss, "__name__", type(loss).__name__)
    shown = [f"{key}={value if not isinstance(value, Tensor) else 'tensor'}" for key, value in options.items()]
    criterion = loss(**options) if isinstance(loss, type) else functools.partial(loss, **options)
    return pytest.param(criterion, label, kind, id="-".join([name, label, *shown]))


# One line for each loss and option; each is run with every reduction.
CASES = [
    case(nn.L1Loss, "values"),
    case(nn.MSELoss, "values"),
    case(nn.MSELoss, "value", "flat"),
    case(nn.HuberLoss, "values", delta=0.3),
    case(nn.SmoothL1Loss, "values", beta=0.3),
    case(nn.BCELoss, "zero-one", "sigmoid"),
    case(nn.BCELoss, "zero-one", "sigmoid", weight=CLASSES),
    case(nn.BCEWithLogitsLoss, "zero-one"),
    case(nn.BCEWithLogitsLoss, "click", "flat", pos_weight=torch.tensor(3.0)),
    case(nn.BCEWithLogitsLoss, "zero-one", pos_weight=CLASSES),
    case(nn.BCEWithLogitsLoss, "zero-one", weight=CLASSES, pos_weight=CLASSES.flip(0)),
    case(nn.CrossEntropyLoss, "class"),
    case(nn.CrossEntropyLoss, "ignored"),
    case(nn.CrossEntropyLoss, "class", weight=CLASSES),
    case(nn.CrossEntropyLoss, "class", ignore_index=2),
    case(nn.CrossEntropyLoss, "class", label_smoothing=0.2),
    case(nn.CrossEntropyLoss, "ignored", weight=CLASSES, label_smoothing=0.2),
    case(nn.CrossEntropyLoss, "places", "places", weight=CLASSES, ignore_index=2),
    case(nn.CrossEntropyLoss, "probabilities"),
    case(nn.CrossEntropyLoss, "probabilities", weight=CLASSES, label_smoothing=0.2),
    case(nn.NLLLoss, "class", "log"),
    case(nn.NLLLoss, "class", "log", weight=CLASSES, ignore_index=0),
    case(nn.PoissonNLLLoss, "counts"),
    case(nn.PoissonNLLLoss, "counts", "sigmoid", log_input=False, full=True, eps=1e-3),
    case(nn.GaussianNLLLoss, "values", "variance"),
    case(nn.GaussianNLLLoss, "values", "variance", full=True, eps=0.5),
    case(nn.KLDivLoss, "probabilities", "log"),
    case(nn.KLDivLoss, "values", "log", log_target=True),
    case(nn.HingeEmbeddingLoss, "signs", margin=0.7),
    case(nn.SoftMarginLoss, "signs"),
    case(nn.MarginRankingLoss, "sign", "pair", margin=0.3),
    case(nn.CosineEmbeddingLoss, "sign", "two", margin=0.2),
    case(nn.MultiLabelMarginLoss, "class_list"),
    case(nn.MultiLabelSoftMarginLoss, "zero-one"),
    case(nn.MultiLabelSoftMarginLoss, "zero-one", weight=CLASSES),
    case(nn.MultiMarginLoss, "class"),
    case(nn.MultiMarginLoss, "class", p=2, margin=0.5, weight=CLASSES),
    case(F.cross_entropy, "ignored", weight=CLASSES),
    case(F.huber_loss, "values", delta=0.3),
]


def on_ranks(size: int, loss: Any, label: str, kind: str, *, weighted: bool = False) -> list[dict[str, Tensor]]:
    """Weights of each rank after some SGD steps, each rank with its cut of the global batches."""
    modules = [Net(kind) for _ in range(size)]  # here, because the threads share one generator
    return run_threaded(size, lambda collective: steps(collective, modules[collective.rank], loss, label, weighted))


def steps(
    collective: ThreadedCollective, module: nn.Module, loss: Any, label: str, weighted: bool
) -> dict[str, Tensor]:
    spec = TrainSpec(
        run_id="r",
        store_uri="memory://",
        dataset=DatasetSpec("", (), RowGroups.of()),
        features=("x",),
        labels=("label",),
        weight="weight" if weighted else None,
        precision="float32",
    )
    optimizer = collective.distributed_optimizer(
        torch.optim.SGD(module.parameters(), lr=0.1), module.named_parameters()
    )
    run = Run(spec, Program(module, loss), collective, "cpu", Reporter(lambda report: None, collective.rank), 0)
    step = GradientStep(run, optimizer, precision="float32")
    for number in range(STEPS):
        rows = CUTS[collective.size][number]
        first = sum(rows[: collective.rank])
        mine = slice(first, first + rows[collective.rank])
        columns = {"x": X[number, mine], "label": LABELS[label][number, mine], "weight": WEIGHT[number, mine]}
        batch = Batch(columns, rows[collective.rank], None, ())  # type: ignore[arg-type]
        step.backward(batch, step.batch_weight(batch, ROWS), 1, number)
        step.update(number, 0, number)
    return {name: value.detach() for name, value in module.named_parameters()}


def plain(loss: Any, label: str, kind: str, *, weighted: bool = False) -> dict[str, Tensor]:
    """The same in plain torch: the loss as it is on the whole batch, or where rows have weights, by its definition."""
    module = Net(kind)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for number in range(STEPS):
        optimizer.zero_grad()
        outputs, target = module(X[number]), LABELS[label][number]
        if kind == "pair":
            outputs = tuple(output[:, 0] for output in outputs)
        if kind == "variance":
            value = loss(outputs[0], target, outputs[1])
        elif isinstance(outputs, tuple):
            value = loss(*outputs, target)
        else:
            value = loss(outputs, target)
        if weighted:
            rows = value.flatten(1).sum(dim=1) if value.dim() > 1 else value
            counts = torch.ones(ROWS) if label != "ignored" else (target != -100).float()
            if isinstance(getattr(loss, "weight", None), Tensor):
                counts = counts * CLASSES[target.clamp(min=0)]
            value = (rows * WEIGHT[number]).sum() / (counts * WEIGHT[number]).sum()
        elif value.dim():
            value = value.mean()
        value.backward()
        optimizer.step()
    return {name: value.detach() for name, value in module.named_parameters()}


def reductions(loss: Any) -> list[str]:
    return ["mean", "sum", *(["batchmean"] if isinstance(loss, nn.KLDivLoss) else [])]


def reduced(loss: Any, reduction: str) -> Any:
    if isinstance(loss, functools.partial):
        return functools.partial(loss, reduction=reduction)
    changed = copy.deepcopy(loss)
    changed.reduction = reduction
    return changed


@pytest.mark.parametrize(("loss", "label", "kind"), CASES)
def test_one_rank_is_plain_torch_and_so_are_several(loss: Any, label: str, kind: str) -> None:
    for reduction in reductions(loss):
        meant = reduced(loss, reduction)
        expected = plain(meant, label, kind)
        for size, tolerance in ((1, 1e-6), (3, 1e-5)):
            for found in on_ranks(size, meant, label, kind):
                for name, value in expected.items():
                    scale = max(1.0, value.abs().max().item())
                    assert (found[name] - value).abs().max() < tolerance * scale, (reduction, size, name)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "class"),
        (nn.CrossEntropyLoss(weight=CLASSES, reduction="none"), "ignored"),
        (nn.MultiMarginLoss(reduction="none"), "class"),
    ],
)
def test_weights_of_rows_and_of_classes_are_multiplied(loss: Any, label: str, size: int) -> None:
    expected = plain(loss, label, "", weighted=True)
    for found in on_ranks(size, loss, label, "", weighted=True):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


REFUSED = [
    (nn.TripletMarginLoss(), "takes no label"),
    (nn.TripletMarginWithDistanceLoss(), "takes no label"),
    (functools.partial(F.triplet_margin_loss, margin=2.0), "takes no label"),
    (nn.CTCLoss(), "lengths"),
    (nn.AdaptiveLogSoftmaxWithLoss(3, 9, [3]), "layer"),
    (nn.MSELoss(reduction="median"), "unknown reduction: 'median'"),
    (functools.partial(F.mse_loss, weight=torch.ones(ROWS, WIDTH)), "weight_column"),
    (nn.Sequential(nn.Linear(4, 1)), "parameters of its own"),
]


def refused_on_the_driver(loss: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_program(Program(Net(""), loss), ("x",), ("label",))


@pytest.mark.parametrize(("loss", "words"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_cannot_be_the_same_for_parts_of_a_batch_is_refused_on_the_driver(loss: Any, words: str) -> None:
    refused_on_the_driver(loss, words)


def test_every_loss_of_torch_is_exact_or_refused() -> None:
    exact = {type(values.values[0]) for values in CASES} | {torch_losses.NLLLoss2d}
    refused = {type(loss) for loss, _ in REFUSED}
    for name in torch_losses.__all__:
        loss = getattr(torch_losses, name)
        if name == "LinearCrossEntropyLoss":  # since torch 2.13
            refused_on_the_driver(loss(3, 4), "layer")
        else:
            assert loss in exact | refused, name


class Focal(nn.CrossEntropyLoss):
    """A user's loss on top of one of torch's."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) * 2.0


def test_a_forward_of_ones_own_keeps_its_mean_and_is_refused_where_that_is_not_known() -> None:
    expected = plain(Focal(), "class", "")
    for found in on_ranks(3, Focal(), "class", ""):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    refused_on_the_driver(Focal(weight=CLASSES), "CrossEntropyLoss with a forward of its own")
    refused_on_the_driver(Focal(ignore_index=2), "CrossEntropyLoss with a forward of its own")


def test_a_weight_for_each_row_of_one_batch_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one number for each row"):
        RowLoss(nn.BCEWithLogitsLoss(weight=torch.ones(ROWS)), ["label"], (), "cpu")(
            [torch.zeros(ROWS)], [LABELS["click"][0]], weighted=False
        )


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(weight=CLASSES), nn.CrossEntropyLoss(reduction="sum")], ids=["weighted", "sum"]
)
def test_losses_of_an_epoch_and_of_validation_have_the_same_meaning(store_uri: str, loss: Any, size: int) -> None:
    store = Store(store_uri)
    label = LABELS["ignored"][0]
    columns = {"x": X[0].numpy(), "label": label.numpy()}
    nothing = {"learning_rate": 1e-30}  # is learnt
    spec = train_spec(store, write_dataset(store, columns, columns), features=("x",), batch_size=5, **nothing)
    _, results = train_on_threads(spec, lambda: Program(Net(""), loss, "sgd"), size)
    expected = loss(Net("")(X[0]), label).item()
    assert results[0].history[0]["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert results[0].history[0]["val_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_each_of_several_losses_has_its_own_mean(store_uri: str, size: int) -> None:
    store = Store(store_uri)
    first, second, third = LABELS["ignored"][0], LABELS["class"][0], LABELS["values"][0]
    columns = {"x": X[0].numpy(), "a": first.numpy(), "b": second.numpy(), "c": third.numpy()}
    losses = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=CLASSES), nn.MSELoss(reduction="sum")]

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net("")

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (self.net(x),) * 3

    spec = train_spec(
        store,
        write_dataset(store, columns),
        features=("x",),
        labels=("a", "b", "c"),
        batch_size=ROWS,
        learning_rate=0.1,
    )
    programs, results = train_on_threads(spec, lambda: Program(Three(), losses, "sgd", (1.0, 0.5, 0.01)), size)
    module = Three()
    outputs = module(X[0])
    targets = (first, second, third)
    expected = sum(
        factor * loss(output, target)
        for factor, loss, output, target in zip((1.0, 0.5, 0.01), losses, outputs, targets, strict=True)
    )
    expected.backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert results[0].history[0]["train_loss"] == pytest.approx(expected.item(), rel=1e-5)
    for name, value in module.named_parameters():
        torch.testing.assert_close(programs[0].module.get_parameter(name), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "counted"), [(nn.CrossEntropyLoss(), False), (nn.CrossEntropyLoss(ignore_index=2), True)]
)
def test_labels_that_are_known_to_count_are_not_counted_again(store_uri: str, loss: Any, counted: bool) -> None:
    store = Store(store_uri)
    columns = {"x": X[0].numpy(), "label": LABELS["class"][0].numpy()}
    spec = train_spec(store, write_dataset(store, columns), features=("x",), batch_size=5)
    found, calls = [], []
    for minimum in (None, 0.0):
        known = [replace(column, minimum=minimum) for column in spec.dataset.columns]
        given = replace(spec, dataset=replace(spec.dataset, columns=tuple(known)), run_id=f"run-{minimum}")
        modules = [Net("") for _ in range(3)]

        def on_rank(collective: ThreadedCollective) -> int:
            train(given, Program(modules[collective.rank], loss, "sgd"), collective, "cpu", lambda event: None)  # noqa: B023
            return collective.calls["train/divisors"]

        calls.append(run_threaded(3, on_rank)[0])
        found.append(dict(modules[0].named_parameters()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)
    assert calls == [3, 3 if counted else 0]
