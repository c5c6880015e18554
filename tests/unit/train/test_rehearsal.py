"""What the first rows find on the driver, in which words, and what they leave as it was."""

from __future__ import annotations

import dataclasses
import gc
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import hvdspark
from hvdspark.errors import ConfigurationError, DataError, HvdSparkError
from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.train import rehearsal
from hvdspark.train.check import check_program
from hvdspark.train.pickling import pack
from hvdspark.train.program import Program
from hvdspark.train.rehearsal import try_out
from tests.unit.train.datasets import train_spec, write_dataset

FEATURES = ("x",)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    """30 rows: x [rows, 3], price and age numbers, hour and id integers, bags of ids, and labels of several kinds."""
    store = Store(tmp_path_factory.mktemp("rehearsal").as_uri())
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal((30, 3)).astype(np.float32)
    columns: dict[str, Any] = {
        "x": numbers,
        "price": numbers[:, 0],
        "age": numbers[:, 1],
        "hour": generator.integers(0, 24, 30),
        "id": generator.integers(100, 200, 30),
        "bag": [list(range(k % 3)) for k in range(30)],
        "label": (numbers[:, 0] > 0).astype(np.float32),
        "class": generator.integers(0, 4, 30),
        "amount": numbers[:, 2] * 100,
        "several": (numbers > 0).astype(np.float32),
    }
    return train_spec(store, write_dataset(store, columns, group_rows=(20, 10)), features=("x",))


def tried(spec: TrainSpec, module: nn.Module, loss: Any = "bce_with_logits", **changes: Any) -> list[str]:
    """As a fit does it: what is known before there are rows, then the first rows."""
    spec = dataclasses.replace(spec, **changes)
    program = Program(module, loss)
    packed = pack(program)
    check_program(program, spec.features, spec.labels)
    return list(try_out(spec, program, packed).warnings)


class Columns(nn.Module):
    """price and age side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 1)

    def forward(self, price: Tensor, age: Tensor) -> Tensor:
        return self.out(torch.stack([price, age], dim=1))


class Applied(nn.Module):
    """Three numbers -> what a function makes of a linear layer."""

    def __init__(self, function: Any, width: int = 1) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(3, width)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean()


class Grown(nn.Module):
    """Has something else after it was called."""

    def __init__(self, grow: Any) -> None:
        super().__init__()
        self.grow, self.layer = grow, nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        self.grow(self, x)
        return self.layer(x)


def grow_layer(module: Any, x: Tensor) -> None:
    module.late = nn.Linear(1, 1)


def grow_statistics(module: Any, x: Tensor) -> None:
    module.register_buffer("mean", x.mean(dim=0))


def grow_memory(module: Any, x: Tensor) -> None:
    module.seen = torch.cat([module.seen, x[:, 0]])


# (features, labels, module, loss, what the error says, what its hint says)
REFUSED: list[Any] = [
    (("hour", "price", "age"), "label", nn.Sequential(nn.Linear(3, 1)), "mse", r"takes 1 argument", "VectorAssembler"),
    (("price",), "label", Columns(), "mse", r"takes 2 arguments \(price, age\)", "name 2 columns"),
    (
        FEATURES,
        "label",
        nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1)),
        "mse",
        r"\(8x3 and 5x8\).*layer '0'",
        "gets 3",
    ),
    (FEATURES, "label", nn.Sequential(nn.Linear(3, 8), nn.Linear(7, 1)), "mse", r"layer '1', Linear\(in_fea", "gets 8"),
    (FEATURES, "label", nn.Sequential(nn.BatchNorm1d(4), nn.Linear(3, 1)), "mse", "BatchNorm1d", "gets 3"),
    (("price",), "label", nn.Sequential(nn.Linear(1, 1)), "mse", r"arrives as float32 \[8\]", "VectorAssembler"),
    (("hour",), "label", nn.Sequential(nn.Linear(1, 1)), "mse", r"int64 \[8\]", "cast .* double.*VectorAssembler"),
    (("price",), "label", nn.Sequential(nn.Embedding(9, 1)), "mse", r"Embedding\(9, 1\)", "cast .* bigint"),
    (("id",), "label", nn.Sequential(nn.Embedding(9, 1)), "mse", "IndexError", r"\[0, 9\), and here is a larger one: "),
    (("bag",), "label", nn.Sequential(nn.Linear(3, 1)), "mse", "arrays of different lengths", "Ragged"),
    (FEATURES, "label", nn.Linear(3, 1).double(), "mse", "RuntimeError.*float32", r"float64.*model\.float\(\)"),
    (FEATURES, "label", nn.Linear(3, 1).half(), "mse", "RuntimeError.*float32", r"float16.*model\.float\(\)"),
    (FEATURES, "label", nn.Linear(3, 1).bfloat16(), "mse", "RuntimeError.*float32", r"precision=.bfloat16"),
    (FEATURES, "label", torch.jit.script(nn.Linear(3, 1)), "mse", "torch.jit", "the Python module"),
    (FEATURES, "label", nn.Linear(3, 4), "mse", "output and label must have the same shape", None),
    (FEATURES, "label", nn.Linear(3, 1), "cross_entropy", "one column for each class", "bce_with_logits"),
    (FEATURES, "class", nn.Linear(3, 3), "cross_entropy", r"\[0, 2\]", None),
    (FEATURES, "amount", nn.Linear(3, 1), "bce_with_logits", r"\[0, 1\]", "map the label"),
    (FEATURES, "label", Applied(lambda y: y.abs() + 2), "bce", "between 0 and 1", "bce_with_logits"),
    (FEATURES, "label", Mean(), "mse", "one row for each of the 8", "first dimension"),
    (FEATURES, "label", Applied(lambda y: y.detach()), "mse", "does not depend on any trained", "detach"),
    (FEATURES, "label", Applied(lambda y: (y, y)), "mse", "one output for each of the 1 labels", "that tensor alone"),
    (FEATURES, "label", Applied(lambda y: "text"), "mse", "must return a tensor", None),
    (FEATURES, "label", Applied(lambda y: y.no_such_thing), "mse", "AttributeError", r"module\(torch.zeros\(8, 3\)\)"),
    (FEATURES, "label", Applied(n for n in []), "mse", "cannot be pickled", "cannot travel"),
    (FEATURES, "label", Grown(grow_layer), "mse", "makes a parameter or buffer.*late", "in __init__"),
    (FEATURES, "label", Grown(grow_statistics), "mse", "makes a parameter or buffer.*mean", "in __init__"),
    (FEATURES, "label", Grown(grow_memory), "mse", "changes the shape of.*seen", "in __init__"),
]


@pytest.mark.parametrize(("features", "label", "module", "loss", "message", "hint"), REFUSED)
def test_what_no_rank_could_train_is_refused_with_its_cure(
    spec: TrainSpec, features: tuple[str, ...], label: str, module: nn.Module, loss: str, message: str, hint: str | None
) -> None:
    with pytest.raises((ConfigurationError, DataError), match=f"(?s){message}") as caught:
        tried(spec, module, loss, features=features, labels=(label,))
    assert hint is None or re.search(f"Hint: .*{hint}", str(caught.value)), caught.value


TRAINABLE: list[Any] = [
    (FEATURES, "label", nn.Linear(3, 1), "bce_with_logits"),
    (("price", "age"), "label", Columns(), "mse"),
    (FEATURES, "class", nn.Linear(3, 4), "cross_entropy"),
    (FEATURES, "class", nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(dim=1)), "nll"),
    (FEATURES, "class", nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(dim=1)), "cross_entropy"),
    (FEATURES, "label", nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()), "bce"),
    (FEATURES, "label", nn.Sequential(nn.Linear(3, 1), nn.ReLU()), "mse"),
    (FEATURES, "label", nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 1)), "bce_with_logits"),
    (FEATURES, "label", nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 1)), "bce_with_logits"),
    (FEATURES, "label", parametrizations.weight_norm(nn.Linear(3, 1)), "bce_with_logits"),
    (FEATURES, "label", nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 2)), nn.Linear(2, 1)), "mse"),
    (FEATURES, "label", nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(1)), "mse"),
    (FEATURES, "label", Applied(lambda y: y.sum(dim=1)), lambda output, label: (output - label).square()),
]


@pytest.mark.parametrize(("features", "label", "module", "loss"), TRAINABLE)
def test_what_can_be_trained_passes_without_a_warning(
    spec: TrainSpec, features: tuple[str, ...], label: str, module: nn.Module, loss: Any
) -> None:
    assert tried(spec, module, loss, features=features, labels=(label,)) == []


WARNED: list[Any] = [
    ("label", nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()), "bce_with_logits", "ends in Sigmoid"),
    ("label", Applied(lambda y: torch.sigmoid(y).squeeze(1)), "bce_with_logits", "ends in Sigmoid"),
    ("label", Applied(lambda y: torch.softmax(y, dim=1)[:, 1], 2), nn.BCEWithLogitsLoss(), "ends in Softmax"),
    ("label", nn.Sequential(nn.Linear(3, 1), nn.ReLU()), "bce_with_logits", "ends in ReLU"),
    ("class", nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1)), "cross_entropy", "Drop the last Softmax"),
    ("class", nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1)), nn.CrossEntropyLoss(), "Drop the last Softmax"),
    ("class", nn.Sequential(nn.Linear(3, 4), nn.Sigmoid()), "cross_entropy", "ends in Sigmoid"),
    ("class", nn.Linear(3, 4), "nll", "LogSoftmax"),
]


@pytest.mark.parametrize(("label", "module", "loss", "words"), WARNED)
def test_a_last_layer_that_the_loss_applies_itself_is_warned_of(
    spec: TrainSpec, label: str, module: nn.Module, loss: Any, words: str
) -> None:
    (warning,) = tried(spec, module, loss, labels=(label,))
    assert words in warning
    assert repr(label) in warning


def attention(**options: Any) -> nn.Module:
    encoder = nn.TransformerEncoderLayer(4, 2, 8, **options)
    return nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 4), encoder, nn.Flatten(), nn.Linear(12, 1))


# What mixes rows, and what only looks like it.
MIXING: list[Any] = [
    (Applied(lambda y: y - y.mean(dim=0)), True),
    (Applied(lambda y: torch.softmax(y, dim=0)), True),
    (attention(), True),
    (attention(batch_first=True), False),
    (Applied(lambda y: y + torch.rand(len(y), 1)), False),
    (nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 1)), False),
]


@pytest.mark.parametrize(("module", "mixes"), MIXING)
def test_predictions_that_depend_on_the_rows_beside_them_are_warned_of(
    spec: TrainSpec, module: nn.Module, mixes: bool
) -> None:
    warnings = tried(spec, module, "mse")
    assert [("rows beside it" in warning, "batch_first=True" in warning) for warning in warnings] == [
        (True, True)
    ] * mixes


class Counting(nn.Module):
    """Draws from all generators, counts its calls in a buffer, an attribute and a list, and renormalises its table."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []
        self.times = 0
        self.table = nn.Embedding(200, 4, max_norm=0.1)
        self.out = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))

    def forward(self, id: Tensor) -> Tensor:
        self.calls += 1
        self.times += 1
        self.seen.append(len(id))
        return self.out(self.table(id) + torch.rand(1) + random.random() + np.random.rand())


def test_module_and_generators_are_left_as_they_were(spec: TrainSpec) -> None:
    module = Counting()
    module.out[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [layer.training for layer in module.modules()]
    generators = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    tried(spec, module, features=("id",))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert (module.seen, module.times) == ([], 0)
    assert [layer.training for layer in module.modules()] == modes
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == generators[1:]


def test_lazy_layers_take_the_width_that_is_there_and_the_seed(spec: TrainSpec) -> None:
    module = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1), nn.BatchNorm1d(1).eval())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    program = Program(module, "mse", optimizer)
    made, again = (try_out(spec, program).packed.program for _ in range(2))
    other = try_out(dataclasses.replace(spec, seed=5), program).packed.program
    weight = made.module[0].weight
    assert (type(made.module[0]), tuple(weight.shape)) == (nn.Linear, (2, 3))
    assert torch.equal(made.module[1].weight, module[1].weight), "what had a shape keeps its values"
    assert torch.equal(weight, again.module[0].weight)
    assert not torch.equal(weight, other.module[0].weight)
    assert made.optimizer.param_groups[0]["params"][0] is weight
    assert [layer.training for layer in made.module] == [True, True, False]
    assert made.module[2].state_dict().keys() == module[2].state_dict().keys()
    assert isinstance(module[0], nn.LazyLinear), "the user's module"


class Counted(nn.Module):
    """Notes how many modules of its class, each with weights of its own, there are when one is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        alive.append(sum(type(value) is Counted for value in gc.get_objects()))
        return self.layer(x)


alive: list[int] = []


def test_there_is_one_copy_of_the_weights_at_a_time(spec: TrainSpec) -> None:
    alive.clear()
    program = Program(Counted(), "bce_with_logits")
    assert try_out(spec, program, saving=True).warnings == ()
    # Called in evaluation, in training, as what is saved should be, and as it would come back.
    assert len(alive) >= 4
    assert max(alive) == 2


class Elsewhere(nn.Module):
    """Asks for something that only ranks have."""

    def __init__(self, ask: Any) -> None:
        super().__init__()
        self.ask, self.out = ask, nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.ask()
        return self.out(x)


def _raises(error: Exception) -> Any:
    def ask() -> None:
        raise error

    return ask


@pytest.mark.parametrize(
    "ask",
    [
        hvdspark.context,
        _raises(RuntimeError("Found no NVIDIA driver on your system.")),
        _raises(AssertionError("Torch not compiled with CUDA enabled")),
        _raises(ValueError("Horovod has not been initialized; use hvd.init().")),
        _raises(ModuleNotFoundError("No module named 'only_there'")),
        _raises(FileNotFoundError("/data/of/the/executors")),
        _raises(MemoryError()),
    ],
)
def test_what_only_ranks_have_is_not_missed_on_the_driver(spec: TrainSpec, ask: Any) -> None:
    assert tried(spec, Elsewhere(ask)) == []


@pytest.mark.parametrize(
    ("label", "module", "loss", "metrics", "unsuited"),
    [
        ("label", nn.Linear(3, 1), "bce_with_logits", ("logloss", "auc", "accuracy"), []),
        ("class", nn.Linear(3, 4), "cross_entropy", ("logloss", "accuracy"), []),
        ("class", nn.Linear(3, 4), "cross_entropy", ("auc", "mse"), ["auc", "mse"]),
        ("x", nn.Linear(3, 3), "mse", ("mse", "mae"), []),
        ("several", nn.Linear(3, 3), "bce_with_logits", ("logloss", "auc", "accuracy"), ["auc"]),
    ],
)
def test_metrics_that_do_not_suit_what_the_module_returns_are_known(
    spec: TrainSpec, label: str, module: nn.Module, loss: str, metrics: tuple[str, ...], unsuited: list[str]
) -> None:
    data = dataclasses.replace(spec.dataset, validation=spec.dataset.train)
    labels = {"labels": (label,), "metrics": metrics}
    program = Program(module, loss)
    found = try_out(dataclasses.replace(spec, dataset=data, **labels), program)
    assert list(found.unsuited) == unsuited
    assert found.spec.metrics == tuple(name for name in metrics if name not in unsuited)
    assert not try_out(dataclasses.replace(spec, **labels), program).unsuited, "nothing to compute"


def test_one_row_is_enough(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri())
    columns = {"x": np.ones((1, 3), np.float32), "label": np.ones(1, np.float32)}
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    assert tried(train_spec(store, write_dataset(store, columns), features=("x",)), module) == []


def test_errors_of_the_users_own_are_the_cause(spec: TrainSpec) -> None:
    mine = KeyError("my own words")
    with pytest.raises(ConfigurationError, match="my own words") as caught:
        tried(spec, Elsewhere(_raises(mine)))
    assert isinstance(caught.value.__cause__, KeyError)
    assert isinstance(caught.value, HvdSparkError)


def test_what_was_pickled_is_not_pickled_again(spec: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(nn.Linear(3, 1), "bce_with_logits")
    packed = pack(program)
    times: list[Program] = []
    monkeypatch.setattr(rehearsal, "pack", lambda program: times.append(program) or pack(program))
    assert try_out(spec, program, packed, saving=True).packed is packed
    assert times == []
    other = Program(nn.Linear(3, 1), "bce_with_logits")
    assert try_out(spec, other, packed).packed.program is other
    assert times == [other]
