"""`torch.compile` of what has sharded tables: the dense layers are compiled, and no bit changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvdspark.artifact.tables import collections_of
from hvdspark.collectives import LocalCollective
from hvdspark.embedding import Initialization, ShardedEmbeddingCollection, TableConfig
from hvdspark.models.click import ClickModel

ROWS = 16


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    """Leaves torch as other tests import it: the compiler puts a function of its own in the place of this one."""
    init = nn.Module.__init__
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    nn.Module.__init__ = init  # type: ignore[method-assign]


class Pooled(nn.Module):
    """Tables of every kind, read through `forward`, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        init = Initialization("uniform", 0.5)
        tables = [
            TableConfig("free", 4, init=init),
            TableConfig("bags", 4, 1000, placement="row", pooling="mean", init=init),
            TableConfig("small", 4, 50, init=init),
        ]
        self.tables = ShardedEmbeddingCollection(tables, {"f": "free", "b": "bags", "s": "small"})
        self.below, self.above = nn.Linear(2, 4), nn.Linear(16, 1)

    def forward(self, x: Tensor, y: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        dense = torch.relu(self.below(torch.stack([x, y], dim=1)))
        offsets = torch.arange(len(second) + 1)
        vectors = self.tables({"f": first, "b": (second, offsets), "s": third})
        return self.above(torch.cat([dense, *vectors.values()], dim=1)).squeeze(1)


def click(architecture: str) -> Callable[[], nn.Module]:
    return lambda: ClickModel(architecture, 2, ["a", "b", "c"], dim=8, hidden=(16, 8))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "pooled": Pooled,
    **{name: click(name) for name in ("dlrm", "deepfm", "wide_deep", "lr")},
}


def batch(step: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(step)
    rows = ROWS - step if step in (4, 5) else ROWS  # the last ones are smaller
    numbers = [torch.randn(rows, generator=random) for _ in range(2)]
    return numbers + [torch.randint(0, 50, (rows,), generator=random) for _ in range(3)]


def run(make: Callable[[], nn.Module], how: str, backend: str = "eager") -> list[Tensor]:
    """Losses of some steps, the dense weights after them, and scores with the trained rows."""
    torch.manual_seed(0)
    module = make()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for collection in collections_of(module):
        collection.bind(LocalCollective())
        collection.step_with(optimizer)
    call: Any = torch.compile(module, backend=backend) if how == "module" else module
    if how == "in place":
        module.compile(backend=backend)

    def step(*columns: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(call(*columns), (columns[0] > 0).float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    if how == "step":
        step = torch.compile(step, backend=backend)
    losses = [step(*batch(number)) for number in range(6)]
    call.eval()
    with torch.no_grad():
        scores = call(*batch(99))
    return [*losses, *(parameter.detach() for parameter in module.parameters()), scores]


@pytest.mark.parametrize(
    ("model", "how"),
    [
        *((model, "module") for model in ("pooled", "deepfm")),
        *(pytest.param(model, "module", marks=pytest.mark.slow) for model in ("wide_deep", "lr")),  # parts of deepfm
        ("dlrm", "in place"),
        *(pytest.param(model, "step", marks=pytest.mark.slow) for model in ("dlrm", "pooled")),
        pytest.param("dlrm", "module", marks=pytest.mark.slow),
    ],
)
def test_compiled_is_uncompiled_bit_for_bit(model: str, how: str) -> None:
    compiled, plain = run(MODELS[model], how), run(MODELS[model], "plain")
    assert all(torch.equal(one, other) for one, other in zip(compiled, plain, strict=True))


@pytest.mark.slow  # with other graphs it is above
def test_compiled_with_an_ahead_of_time_graph_is_uncompiled() -> None:
    compiled, plain = run(MODELS["dlrm"], "module", "aot_eager"), run(MODELS["dlrm"], "plain")
    assert all(torch.equal(one, other) for one, other in zip(compiled, plain, strict=True))


def test_the_dense_layers_are_in_graphs_and_nothing_of_the_exchange() -> None:
    operations: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        operations.extend(f"{node.op} {node.target}" for node in graph.graph.nodes)
        return graph.forward

    run(MODELS["pooled"], "module", backend)  # type: ignore[arg-type]
    assert sum("linear" in operation for operation in operations) >= 2
    assert not any("embedding_bag" in operation or "alltoall" in operation for operation in operations)


@pytest.mark.slow  # one that does not is above
def test_a_loop_that_prefetches_may_be_compiled() -> None:
    def losses(compiled: bool) -> list[float]:
        torch.manual_seed(0)
        module = Pooled()
        module.tables.bind(LocalCollective())
        inputs = [{"f": some[2], "b": some[3].unsqueeze(1), "s": some[4]} for some in map(batch, range(4))]

        def step(number: int) -> Tensor:
            vectors = module.tables(inputs[number])
            if number + 1 < len(inputs):
                module.tables.prefetch(inputs[number + 1])
            loss = sum(value.square().sum() for value in vectors.values())
            loss.backward()  # type: ignore[union-attr]
            module.tables.synchronize()
            module.tables.apply_gradients()
            return loss.detach()  # type: ignore[union-attr]

        step = torch.compile(step, backend="eager") if compiled else step
        return [float(step(number)) for number in range(4)]

    assert losses(True) == losses(False)


def test_scoring_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig\n"
        "tables = ShardedEmbeddingCollection([TableConfig('t', 2)], {'f': 't'}).eval()\n"
        "tables([torch.tensor([1])]), tables.stacked([torch.tensor([1])])\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
