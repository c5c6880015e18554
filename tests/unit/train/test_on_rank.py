from __future__ import annotations

import cloudpickle
import pytest
import torch
from torch import nn

from hvdspark.artifact.weights import load_weights
from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig
from hvdspark.store import Store
from hvdspark.train.driver import send
from hvdspark.train.on_rank import initial_weights
from hvdspark.train.pickling import pack
from hvdspark.train.program import Program


class Large(nn.Module):
    """40 MB of Parameters, a replicated and a sharded table."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3200, 3200)
        self.tables = ShardedEmbeddingCollection(
            [TableConfig("sharded", 64, 10**9), TableConfig("replicated", 8, 1000)],
            {"a": "sharded", "b": "replicated"},
        )


def test_what_travels_through_the_driver_is_small_whatever_the_model(store_uri: str) -> None:
    module, store = Large(), Store(store_uri)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    sent = send(store, "run-1", pack(Program(module, "mse", optimizer)))
    assert len(sent) < 20_000
    arrived: Program = cloudpickle.loads(sent)
    load_weights(store, initial_weights("run-1"), arrived.module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(arrived.module.state_dict()[name], tensor), name
    # The optimizer that arrives is one of the module that arrives.
    held = [parameter for group in arrived.optimizer.param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in held] == [id(parameter) for parameter in arrived.module.parameters()]


@pytest.mark.parametrize("tied", [False, True])
def test_the_module_itself_is_left_alone(store_uri: str, tied: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    if tied:
        module[1].weight = module[0].weight
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    sent = send(Store(store_uri), "run-1", pack(Program(module, "mse")))
    arrived = cloudpickle.loads(sent).module
    assert (arrived[0].weight is arrived[1].weight) == tied
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
