"""What the sharded tables of a module will take on each rank: checked before a fit starts, and said in its log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from hvdspark.artifact.tables import collections_of
from hvdspark.embedding.plan.sharding import format_bytes, plan_sharding
from hvdspark.events import FitListener, FitStarted, TablesPlan
from hvdspark.launch import MemoryBudget

logger = logging.getLogger(__name__)


def plan_tables(
    module: nn.Module, world_size: int, batch_size: int, budget_of: Callable[[], MemoryBudget | None]
) -> tuple[TablesPlan, ...]:
    """The plan of each of the module's collections of sharded tables. What unbounded tables will need is not known.

    Args:
        batch_size: rows of the global batch, or more where they are not known yet.
        budget_of: asks what a rank may use; only called where there are tables.

    Raises:
        ConfigurationError: the tables need more memory than a rank has.
    """
    collections = collections_of(module)
    budget = budget_of() if collections else None
    left = float("inf") if budget is None else float(budget.bytes)
    plans = []
    for collection in collections:
        plan = plan_sharding(list(collection.tables.values()), world_size, batch_size=batch_size)
        if budget is not None:
            plan.check(left, budget.setting)
        rank_bytes = tuple(int(share.total) for share in plan.rank_bytes)
        available, setting = (None, "") if budget is None else (int(left), budget.setting)
        plans.append(TablesPlan(len(plan.tables), rank_bytes, available, setting, plan.explain()))
        left -= max(share.total for share in plan.rank_bytes)
    return tuple(plans)


class MemoryReport(FitListener):
    """Logs what each rank will hold of sharded tables, and what it may use: the plan as a table, at level INFO."""

    def on_fit_started(self, event: FitStarted) -> None:
        for plan in event.plan:
            limit = "" if plan.available is None else f", {format_bytes(plan.available)} are there ({plan.setting})"
            logger.info(
                "sharded tables take up to %s on a rank, besides what unbounded ones grow to%s:\n%s",
                format_bytes(max(plan.rank_bytes)),
                limit,
                plan.text,
            )
