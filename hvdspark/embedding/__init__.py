"""Embedding tables larger than one worker: sharding (pure plan), exchange (alltoall), table (local rows), module."""

from hvdspark.embedding.config import Admission, Eviction, Initialization, SparseOptimizer, TableConfig
from hvdspark.embedding.lineage import dense_weights_alone
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.embedding.plan.sharding import plan_sharding
from hvdspark.embedding.updates import step_scaled

__all__ = [
    "Admission",
    "Eviction",
    "Initialization",
    "ShardedEmbeddingCollection",
    "SparseOptimizer",
    "TableConfig",
    "dense_weights_alone",
    "plan_sharding",
    "step_scaled",
]
