"""Scaled losses: sharded rows are trained as without a scale, and rest where a gradient overflowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdspark.collectives import Collective
from hvdspark.embedding import Initialization, ShardedEmbeddingCollection, SparseOptimizer, TableConfig, step_scaled
from hvdspark.errors import ConfigurationError, TrainingDivergedError
from tests.unit.embedding.unsharded import on_ranks

IDS = torch.arange(8)


class Net(nn.Module):
    """Two collections and a layer; "gain" multiplies the gradient of rows and layer."""

    def __init__(self, collective: Collective) -> None:
        super().__init__()
        init = Initialization("uniform", 0.5)

        def tables(name: str, optimizer: str) -> ShardedEmbeddingCollection:
            sparse = SparseOptimizer(optimizer, 0.1, initial_accumulator=0.1)
            table = TableConfig("t", 3, 10**5, optimizer=sparse, init=init)
            return ShardedEmbeddingCollection([table], {"f": "t"}, collective=collective, name=name)

        self.one, self.two = tables("one", "adagrad"), tables("two", "adam")
        self.out = nn.Linear(6, 1)
        with torch.no_grad():
            self.out.weight.fill_(0.3)
            self.out.bias.fill_(0.1)

    def forward(self, ids: Tensor, gain: Tensor) -> Tensor:
        vectors = torch.cat([self.one([ids])["f"] * gain, self.two([ids])["f"]], dim=1)
        return self.out(vectors)


def all_of(net: Net) -> Tensor:
    with torch.no_grad():
        rows = [tables.eval()([IDS])["f"] for tables in (net.one, net.two)]
    net.train()
    return torch.cat([*(row.flatten() for row in rows), net.out.weight.flatten()]).clone()


def train(collective: Collective, scaled: bool, gains: list[float], clip: bool = False) -> tuple[list[Any], float]:
    """Everything that is trained, after each step; the same on all ranks, which have the same rows."""
    net = Net(collective)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, enabled=scaled)
    seen = [all_of(net)]
    for gain in gains:
        own = gain if collective.rank == 0 else 1.0
        loss = net(IDS, torch.tensor(own)).square().sum() / (len(IDS) * collective.size)
        scaler.scale(loss).backward()
        for parameter in net.parameters():
            parameter.grad = collective.allreduce_sum(parameter.grad, "dense")
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1e6)
        step_scaled(net, optimizer, scaler)
        optimizer.zero_grad()
        seen.append(all_of(net))
    return seen, scaler.get_scale()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("clip", [False, True])
def test_a_scale_changes_nothing(size: int, clip: bool) -> None:
    gains = [1.0] * 5
    scaled = on_ranks(size, lambda collective: train(collective, True, gains, clip))
    plain = on_ranks(size, lambda collective: train(collective, False, gains, clip))
    for (seen, scale), (expected, _) in zip(scaled, plain, strict=True):  # type: ignore[misc]
        assert scale == 2.0**11  # it has grown
        for one, other in zip(seen, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("gain", [1e38, float("inf")])
def test_what_overflows_on_one_rank_leaves_everything_as_it_is_on_all(size: int, clip: bool, gain: float) -> None:
    for seen, scale in on_ranks(size, lambda collective: train(collective, True, [1.0, gain, 1.0], clip)):  # type: ignore
        assert scale == 2.0**9
        assert torch.equal(seen[1], seen[2])
        assert not torch.equal(seen[2], seen[3])
        assert bool(torch.isfinite(seen[3]).all())


@pytest.mark.parametrize("clip", [False, True])
def test_an_overflow_of_the_rows_alone_is_one(clip: bool) -> None:
    """The dense gradient is finite: the scaler would never see it."""

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, vectors: Tensor) -> Tensor:
            return vectors.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * torch.inf

    def body(collective: Collective) -> None:
        net = Net(collective)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        before = all_of(net)
        for enabled in (True, False):
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled)
            vectors = torch.cat([Overflow.apply(net.one([IDS])["f"]), net.two([IDS])["f"]], dim=1)
            scaler.scale(net.out(vectors).sum()).backward()
            if clip:
                scaler.unscale_(optimizer)
            if enabled:
                assert not step_scaled(net, optimizer, scaler)
                assert scaler.get_scale() == 4.0
                assert torch.equal(all_of(net), before)
                net.zero_grad()
            else:
                with pytest.raises(TrainingDivergedError):
                    step_scaled(net, optimizer, scaler)

    on_ranks(1, body)


def test_a_scale_may_be_given() -> None:
    def body(collective: Collective) -> Tensor:
        results = []
        for scale in (1.0, 256.0):
            net = Net(collective)
            (net(IDS, torch.tensor(1.0)).sum() * scale).backward()
            for tables in (net.one, net.two):
                tables.apply_gradients(scale=scale)
            results.append(all_of(net))
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
        return results[0]

    on_ranks(1, body)


def test_a_scaler_that_steps_an_optimizer_with_rows_on_its_hook_is_refused() -> None:
    def body(collective: Collective) -> None:
        net = Net(collective)
        before = all_of(net)[:48]
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        net.one.step_with(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        scaler.scale(net(IDS, torch.tensor(1.0)).sum()).backward()
        with pytest.raises(ConfigurationError, match=r"GradScaler does not know them.*Hint: .*step_scaled\(module"):
            scaler.step(optimizer)
        assert torch.equal(all_of(net)[:48], before)
        disabled = torch.amp.GradScaler("cpu", enabled=False)
        disabled.step(optimizer)  # is optimizer.step()
        assert net.one.steps == 1

    on_ranks(1, body)
