"""When a gang is started again."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hvdspark.errors import RankFailedError
from hvdspark.launch import supervisor
from hvdspark.launch.protocol import Launcher, LaunchSpec
from hvdspark.launch.same_host import SameHostLauncher


@pytest.mark.parametrize(
    ("kind", "generations"), [("signal", 3), ("executor_lost", 3), ("peer_lost", 3), ("exception", 1), ("exit", 1)]
)
def test_restarts_are_bounded(monkeypatch: pytest.MonkeyPatch, kind: str, generations: int) -> None:
    begun = []

    def generation(launcher: Launcher, spec: LaunchSpec, *others: Any) -> list[Any]:
        begun.append(spec.generation)
        raise RankFailedError(1, "h", "gone", kind=kind)

    monkeypatch.setattr(supervisor, "run_generation", generation)
    with pytest.raises(RankFailedError, match="gone"):
        supervisor.supervise(SameHostLauncher(), time.time, num_workers=2, max_restarts=2)
    assert begun == list(range(generations))
