"""Embedding tables larger than one worker: plan (pure), exchange (alltoall), rows (of one rank), files, module."""

from hvdspark.embedding.config import Admission, Eviction, Initialization, SparseOptimizer, TableConfig
from hvdspark.embedding.lineage import dense_weights_alone
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.embedding.plan.sharding import ShardingPlan, Traffic, plan_sharding
from hvdspark.embedding.updates import step_scaled

__all__ = [
    "Admission",
    "Eviction",
    "Initialization",
    "ShardedEmbeddingCollection",
    "ShardingPlan",
    "SparseOptimizer",
    "TableConfig",
    "Traffic",
    "dense_weights_alone",
    "plan_sharding",
    "step_scaled",
]
