"""Start a gang of ranks on a Spark cluster and see it to its end."""

from hvdspark.launch.budget import MemoryBudget
from hvdspark.launch.context import RankContext, context
from hvdspark.launch.environment import check_environment
from hvdspark.launch.interrupt import cancel_jobs, interruptible, new_tag
from hvdspark.launch.memory import rank_memory
from hvdspark.launch.preemption import Preemption
from hvdspark.launch.supervisor import check_spark, run
from hvdspark.launch.workers import hosts_without, on_many_hosts
from hvdspark.launch.world_sizes import WorldSizes, world_sizes

__all__ = [
    "MemoryBudget",
    "Preemption",
    "RankContext",
    "WorldSizes",
    "cancel_jobs",
    "check_environment",
    "check_spark",
    "context",
    "hosts_without",
    "interruptible",
    "new_tag",
    "on_many_hosts",
    "rank_memory",
    "run",
    "world_sizes",
]
