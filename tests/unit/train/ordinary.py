"""Modules as people write them: what is saved of each must predict the same bits in another process.

The next case is a line of `MODULES`, or of `REFUSED` with what the refusal has to name.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import functools
import logging
import math
import re
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from hvdspark.models import make_model
from hvdspark.train.callbacks import Callback

WIDTH = 3


class Scaled(nn.Module):
    """A constructor argument of any kind, used in forward."""

    def __init__(self, scale: Any, use: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.scale, self.use, self.layer = scale, use, nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale if self.use is None else self.use(self.scale, self.layer(x))


class Forgetful(nn.Module):
    """Keeps none of its constructor arguments."""

    def __init__(self, width: int, *sizes: int, **options: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, sum(sizes), **options), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor([1.0, -2.0, 3.0]))
        self.register_buffer("transient", torch.tensor([0.5, 0.25, 4.0]), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("turn", torch.tensor([1j, 2 + 1j, 3.0], dtype=torch.complex64))
        self.plain = torch.tensor([7.0, 8.0, 9.0])
        self.bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        turned = (x * self.turn).abs()  # type: ignore[operator]
        return torch.where(self.mask, x * self.kept + self.plain, turned * self.transient) + self.bias.float()  # type: ignore


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.outer.weight = self.inner.weight
        self.again, self.by_name = self.inner, {"inner": self.inner, "weight": self.inner.weight}

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.again(self.by_name["inner"](x))) + self.by_name["weight"].sum()


class Looped(nn.Module):
    """Knows what it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 1)
        self.parents = [self]

    def forward(self, x: Tensor) -> Tensor:
        return self.parents[0].layer(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.gru = nn.LSTM(1, 4, num_layers=2, batch_first=True), nn.GRU(4, 2, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.rnn(x.unsqueeze(2))[0].transpose(0, 1))[0][-1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation="gelu", batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x.unsqueeze(2).expand(-1, -1, 4))
        return self.attention(y, y, y)[0].flatten(1)


class Hooked(nn.Module):
    """Hooks that are its own methods, and one that is called with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(WIDTH, 1), 5.0
        self.layer.register_forward_hook(self.enlarge)
        self.layer.register_forward_pre_hook(self.shift, with_kwargs=True)

    def enlarge(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * self.factor

    def shift(self, module: nn.Module, inputs: Any, keywords: Any) -> Any:
        return tuple(x + 1.0 for x in inputs), keywords

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Slotted(nn.Module):
    __slots__ = ("secret",)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 1)
        object.__setattr__(self, "secret", 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.secret


class Viewing(nn.Module):
    """An attribute that is a part of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 1)
        self.first = self.layer.weight.detach()[:, :1]


class Changing(nn.Module):
    """Restores something else than it was."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(WIDTH, 1), 3.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "scale": 1.0})


class Every(Callback):
    def __init__(self, steps: int) -> None:
        self.steps, self.seen = steps, {"rows": [1, 2]}


class Mode(enum.Enum):
    DOUBLE = 2
    TRIPLE = 3


@dataclasses.dataclass(frozen=True)
class Config:
    factor: float
    sizes: tuple[int, ...] = (1, 2)


class Pair(NamedTuple):
    first: float
    second: Any


def double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2.0


def times(scale: Any, x: Tensor) -> Tensor:
    return x * scale


def changed(module: nn.Module, change: Callable[[Any], Any]) -> nn.Module:
    change(module)
    return module


def set_later(module: Any) -> None:
    module.scale = 11.0
    module.layer.new_attribute = "later"
    module.extra = nn.Linear(2, 2)


def freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.eval()


def trained_batch_norm() -> nn.Module:
    module = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 2))
    module(torch.randn(50, WIDTH) * 3 + 1)
    module[0].eval().requires_grad_(False)
    return module


def lazy() -> nn.Module:
    module = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    module(torch.randn(5, WIDTH))
    return module


def use_in(function: Callable[[Any, Tensor], Tensor], scale: Any) -> nn.Module:
    return Scaled(scale, function)


# Names that need no more trust than their module's import.
MODULES: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.GELU(approximate="tanh"), nn.LayerNorm((4,)), nn.PReLU()),
    "scalar tensor argument": lambda: Scaled(torch.tensor(3.0)),
    "vector tensor argument": lambda: Scaled(torch.tensor([3.0, -1.0])),
    "bool argument": lambda: Scaled(True),
    "numpy scalar argument": lambda: Scaled(np.float32(0.1)),
    "numpy array": lambda: use_in(times_array, np.array([1.5, 2.5])),
    "list argument": lambda: use_in(first_plus, [1.0, 2.0]),
    "nested arguments": lambda: Scaled(np.float64(2.5), None),
    "dict of tuples and sets": lambda: use_in(by_key, {"a": (1.0, {2.0, 3.0}), 4: None, None: slice(1, 2)}),
    "ordered dict": lambda: use_in(by_key, collections.OrderedDict(a=(2.0, frozenset({1})))),
    "default dict": lambda: use_in(by_key, collections.defaultdict(list, a=(1.0, {2.0}))),
    "named tuple": lambda: use_in(first, Pair(4.0, [torch.tensor(2.0)])),
    "dataclass": lambda: use_in(factor, Config(0.3)),
    "namespace": lambda: use_in(factor, argparse.Namespace(factor=0.7)),
    "logger": lambda: use_in(factor, argparse.Namespace(factor=0.7, log=logging.getLogger("hvdspark.test"))),
    "enum": lambda: use_in(enum_value, Mode.TRIPLE),
    "dtype": lambda: use_in(convert, torch.float64),
    "infinity and nan": lambda: use_in(clamp, (float("-inf"), 0.1, float("nan"))),
    "module argument": lambda: use_in(call, nn.Linear(2, 2)),
    "functions by name": lambda: Scaled(F.softplus, call),
    "builtin functions by name": lambda: Scaled(torch.tanh, call),
    "other functions by name": lambda: Scaled([math.sqrt, torch.special.expit, nn.init.zeros_], apply_all),
    "forward of its own": lambda: changed(nn.Linear(WIDTH, 1), replace_forward),
    "functional that is dispatched": lambda: Scaled(functools.partial(F.max_pool1d, kernel_size=2), call),
    "arguments that are not kept": lambda: Forgetful(WIDTH, 2, 3, bias=False),
    "attributes set later": lambda: changed(Scaled(1.0), set_later),
    "layer added later": lambda: changed(nn.Sequential(nn.Linear(WIDTH, 2)), lambda m: m.append(nn.Tanh())),
    "buffers of all kinds": Buffers,
    "tied weights": Tied,
    "a loop": Looped,
    "recurrent": Recurrent,
    "attention": Attention,
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, 2, 3, padding=1), nn.Flatten()),
    "containers": lambda: use_in(
        in_turn, nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.ModuleList([nn.Tanh(), nn.Linear(2, 1)])})
    ),
    "parameter containers": lambda: use_in(parameters, nn.ParameterDict({"a": nn.Parameter(torch.tensor(3.0))})),
    "attributes of a weight": lambda: use_in(
        by_its_unit, changed(nn.Linear(2, 1), lambda m: setattr(m.weight, "unit", 5.0))
    ),
    "from_pretrained": lambda: use_in(embedded, nn.Embedding.from_pretrained(torch.randn(5, 2))),
    "own hooks": Hooked,
    "frozen": lambda: changed(Scaled(2.0), freeze),
    "frozen batch norm": trained_batch_norm,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, 2)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(WIDTH, 4)), nn.Linear(4, 1)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(WIDTH, 3)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(WIDTH, 2)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(WIDTH, 2), "weight", 0.5),
    "lazy after its first pass": lazy,
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 1)),
    "double precision": lambda: use_in(in_double, nn.Linear(2, 1).double()),
    "of hvdspark": lambda: use_in(click, make_model("deepfm", numbers=2, fields=0, dim=4, hidden=[4], dropout=0.1)),
}

# What a refusal says, instead of predicting something else after loading.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lambda": (lambda: Scaled(lambda x: x, call), r"no import path.*scale"),
    "forward that is a lambda": (
        lambda: changed(nn.Linear(WIDTH, 1), lambda m: setattr(m, "forward", types.MethodType(lambda m, x: x, m))),
        "no import path.*forward",
    ),
    "hook that is a closure": (lambda: changed(nn.Linear(WIDTH, 1), add_closure), "_forward_hooks"),
    "slots": (Slotted, "Slotted is more than its attributes"),
    "part of a weight": (Viewing, "shares memory with.*first"),
    "weights of one memory": (
        lambda: changed(Tied(), lambda m: setattr(m.outer, "weight", nn.Parameter(m.inner.weight.data))),
        r"shares memory with outer\.weight.*inner\.weight",
    ),
    "restores something else": (Changing, "something else than was trained.*scale is 1.0 instead of 3.0"),
    "deque": (lambda: Scaled(collections.deque([1])), "a deque is more than its attributes.*scale"),
    "combined flags": (lambda: Scaled(re.IGNORECASE | re.DOTALL), "cannot be described"),
    "counter": (lambda: Scaled(collections.Counter("a")), "a Counter has no description.*scale"),
    "generator": (lambda: Scaled(torch.Generator()), "scale"),
    "compiled": (lambda: torch.compile(nn.Linear(WIDTH, 1)), "torch.compile"),  # type: ignore[dict-item, return-value]
    "torchscript": (lambda: torch.jit.script(nn.Linear(WIDTH, 1)), "TorchScript"),
    "sparse tensor": (lambda: Scaled(torch.eye(2).to_sparse()), "Tensor of this kind.*scale"),
    "class of a function": (lambda: local_class(), "no import path"),
}


def local_class() -> nn.Module:
    class Local(nn.Linear):
        pass

    return Local(WIDTH, 1)


def add_closure(module: nn.Module) -> None:
    factor = 3.0
    module.register_forward_hook(lambda *arguments: arguments[2] * factor)


def times_array(scale: Any, x: Tensor) -> Tensor:
    return x * torch.from_numpy(scale).float()


def first_plus(scale: list[float], x: Tensor) -> Tensor:
    return x * sum(scale + [1.0])  # noqa: RUF005: a tuple would fail here


def by_key(scale: dict[Any, Any], x: Tensor) -> Tensor:
    return x * (scale["a"][0] + sum(scale["a"][1]))


def first(scale: Pair, x: Tensor) -> Tensor:
    return x * scale.first * scale.second[0]


def factor(scale: Any, x: Tensor) -> Tensor:
    return x * scale.factor


def enum_value(scale: Mode, x: Tensor) -> Tensor:
    return x * scale.value if scale is Mode.TRIPLE else x


def convert(scale: torch.dtype, x: Tensor) -> Tensor:
    return x.to(scale) / 3.0


def clamp(scale: tuple[float, float, float], x: Tensor) -> Tensor:
    return x.clamp(scale[0], scale[1]) + torch.tensor(scale[2]).nan_to_num(2.0)


def apply_all(scale: Any, x: Tensor) -> Tensor:
    return scale[1](x) * scale[0](3.0) + scale[2](x.clone())


def replace_forward(module: Any) -> None:
    module.forward = types.MethodType(forward_twice, module)


def forward_twice(module: Any, x: Tensor) -> Tensor:
    return F.linear(x, module.weight * 2.0, module.bias)


def call(scale: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return scale(x)


def in_turn(scale: Any, x: Tensor) -> Tensor:
    x = scale["b"](x)
    for layer in scale["a"]:
        x = layer(x)
    return x


def parameters(scale: Any, x: Tensor) -> Tensor:
    return x * scale["a"]


def by_its_unit(scale: Any, x: Tensor) -> Tensor:
    return scale(x) * getattr(scale.weight, "unit", 1.0)


def embedded(scale: nn.Module, x: Tensor) -> Tensor:
    return scale(x.argmax(1))


def click(scale: nn.Module, x: Tensor) -> Tensor:
    return scale(x, x.new_zeros(len(x), 0, 4), x.new_zeros(len(x), 0))


def in_double(scale: nn.Module, x: Tensor) -> Tensor:
    return scale(x.double())


def rows() -> Tensor:
    return torch.linspace(-2.0, 3.0, 8 * WIDTH).reshape(8, WIDTH)
