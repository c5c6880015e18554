"""State dicts and copies of a module with sharded tables: with its rows, or refused in words."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from hvdspark.collectives import LocalCollective
from hvdspark.embedding import ShardedEmbeddingCollection, SparseOptimizer, TableConfig, dense_weights_alone
from hvdspark.errors import ConfigurationError, HvdSparkError, PersistenceError
from hvdspark.store import Store

IDS = torch.arange(6)


class Net(nn.Module):
    """A sharded, an unbounded and a replicated table, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        sgd = SparseOptimizer("sgd", 1.0)
        tables = [TableConfig("a", 2, 100, placement="row", optimizer=sgd), TableConfig("b", 2, optimizer=sgd)]
        tables.append(TableConfig("small", 2, 10))
        features = {"a": "a", "b": "b", "small": "small"}
        self.tables = ShardedEmbeddingCollection(tables, features, collective=LocalCollective())
        self.out = nn.Linear(6, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.cat(list(self.tables([ids, ids, ids]).values()), dim=1))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def trained(net: Net, steps: int = 2) -> Net:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = net.tables.step_with(optimizer)
    for _ in range(steps):
        net(IDS).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    handle.remove()
    return net


def scores(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module.eval()(IDS)


def through_torch_save(net: Net) -> nn.Module:
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh = Net()
    fresh.load_state_dict(torch.load(file))
    return fresh


def loaded(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], strict: bool = True) -> Callable[[Net], nn.Module]:
    def load(net: Net) -> nn.Module:
        fresh = Net()
        fresh.load_state_dict(change(net.state_dict()), strict=strict)
        return fresh

    return load


def through_pickle(net: Net) -> nn.Module:
    return pickle.loads(pickle.dumps(net))


def into_a_trained_one(net: Net) -> nn.Module:
    other = trained(Net(), steps=1)
    other.load_state_dict(net.state_dict())
    return other


# What people do with a trained module: the result scores as the module does, or an error says what is missing.
WAYS: dict[str, Callable[[Net], nn.Module]] = {
    "load_state_dict": loaded(lambda state: state),
    "not strict": loaded(lambda state: state, strict=False),
    "a plain dict": loaded(dict),
    "names changed": loaded(lambda state: {f"module.{name}"[7:]: value for name, value in state.items()}),
    "what the other has": loaded(
        lambda state: {k: v for k, v in state.items() if k in Net().state_dict()}, strict=False
    ),
    "a part": loaded(lambda state: {k: v for k, v in state.items() if "out" in k}, strict=False),
    "copied": loaded(copy.deepcopy),
    "another OrderedDict": loaded(lambda state: type(state)(state), strict=False),
    "torch.save": through_torch_save,
    "safetensors": loaded(lambda state: safetensors.torch.load(safetensors.torch.save(state))),
    "into a trained one": into_a_trained_one,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": through_pickle,
    "averaged afterwards": AveragedModel,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_carried_away_from_a_trained_module_has_its_rows_or_is_refused(way: str) -> None:
    module = trained(net())
    refusal, other = "", module
    try:
        other = WAYS[way](module)
    except HvdSparkError as error:
        refusal = str(error)
    assert not refusal or ("rows" in refusal and "Hint" in refusal)
    assert torch.equal(scores(other), scores(module))


def test_passes_that_wait_for_an_update_stay_with_the_original() -> None:
    module = net()
    module(IDS).sum().backward()
    other = copy.deepcopy(module)
    other.tables.apply_gradients()
    assert other.tables.steps == 0
    module.tables.apply_gradients()
    assert module.tables.steps == 1


@pytest.mark.parametrize("make", [copy.deepcopy, AveragedModel, lambda module: copy.deepcopy(copy.deepcopy(module))])
def test_a_copy_made_before_training_does_not_score_without_the_trained_rows(make: Callable[[Net], nn.Module]) -> None:
    module = net()
    other = make(module)
    assert torch.equal(scores(other), scores(module))  # both are untrained
    other.train()
    trained(module.train())
    if isinstance(other, AveragedModel):
        other.update_parameters(module)
    with pytest.raises(ConfigurationError, match=r"a copy that was made before training.*Hint: score with the module"):
        scores(other)


def test_copies_of_an_untrained_module_train_and_score_on_their_own() -> None:
    template = net()
    first, second = copy.deepcopy(template), copy.deepcopy(template)
    begin = scores(template)
    trained(first)
    assert torch.equal(scores(second), begin)  # its origin was not trained
    trained(second.train())
    assert torch.equal(scores(first), scores(second))
    other = copy.deepcopy(template)
    trained(template.train())
    other.train()
    assert torch.equal(scores(trained(other)), scores(template))
    again = pickle.loads(pickle.dumps(net()))
    assert torch.equal(scores(again), begin)


def test_a_state_dict_without_trained_rows_is_as_ever() -> None:
    module, other = net(0), net(1)
    assert not torch.equal(scores(module), scores(other))
    other.load_state_dict(module.state_dict())
    assert torch.equal(scores(module), scores(other))
    replicated = ShardedEmbeddingCollection([TableConfig("t", 2, 10)], {"f": "t"})
    replicated.load_state_dict(dict(replicated.state_dict()))


def test_rows_and_dense_weights_are_carried_together_when_both_are_asked_for(tmp_path: Path) -> None:
    module, other, store = trained(net(0)), net(1), Store(str(tmp_path))
    entries = module.tables.write_rows(store, "rows", state=True)
    other.tables.read_rows(store, "rows", module.tables.description(), entries)
    with dense_weights_alone():
        other.load_state_dict(module.state_dict())
    assert torch.equal(scores(other), scores(module))
    assert torch.equal(scores(trained(other.train())), scores(trained(module.train())))
    with pytest.raises(PersistenceError, match="would leave those that are here"):
        other.load_state_dict(module.state_dict())


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_of_a_lookup_is_refused(reentrant: bool) -> None:
    module = net()
    bias = torch.zeros(1, requires_grad=True)
    before = scores(module)
    module.train()
    with pytest.raises(ConfigurationError, match="looked up again in a backward pass.*Hint: keep the collection out"):
        checkpoint(lambda bias: module(IDS) + bias, bias, use_reentrant=reentrant).sum().backward()
    module.tables.discard_gradients()
    assert module.tables.steps == 0
    assert torch.equal(scores(module)[:, :1].isfinite(), before.isfinite())


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_above_a_lookup_is_plain_training(reentrant: bool) -> None:
    results = []
    for wrap in (lambda layer, vectors: layer(vectors), lambda *both: checkpoint(*both, use_reentrant=reentrant)):
        module = net()
        vectors = torch.cat(list(module.tables([IDS, IDS, IDS]).values()), dim=1)
        wrap(module.out, vectors).sum().backward()  # type: ignore[no-untyped-call]
        module.tables.apply_gradients()
        results.append(scores(module))
    assert torch.equal(*results)
