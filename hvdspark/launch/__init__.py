"""Start a gang of ranks on a Spark cluster and see it to its end."""

from hvdspark.launch.context import RankContext, context
from hvdspark.launch.memory import MemoryBudget, rank_memory
from hvdspark.launch.session import check_session
from hvdspark.launch.supervisor import run

__all__ = ["MemoryBudget", "RankContext", "check_session", "context", "rank_memory", "run"]
