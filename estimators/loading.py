"""Loading a fitted model of which only the place is known, not the class."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import SparkSession

import hvdspark.estimators
from hvdspark.errors import PersistenceError
from hvdspark.estimators.model import FittedModel
from hvdspark.estimators.paths import spark_store
from hvdspark.estimators.persistence import HvdSparkReader, read_metadata


def load_fitted(spark: SparkSession, path: str, trusted_packages: Sequence[str] = ()) -> FittedModel:
    """The fitted model that lies at a path or URI, of whichever class of `hvdspark.estimators` it is.

    Args:
        trusted_packages: beside those that the session trusts.

    Raises:
        PersistenceError: something else was saved there, or as the class's `load`.
        CheckpointError, StoreError: as the class's `load`.
    """
    named = str(read_metadata(spark, spark_store(spark, path), path)["class"])
    package, _, name = named.rpartition(".")
    found = getattr(hvdspark.estimators, name, None) if f"{package}.".startswith("hvdspark.estimators.") else None
    if not (isinstance(found, type) and issubclass(found, FittedModel)):
        raise PersistenceError("no fitted model of hvdspark was saved here", value=named, where=path)
    model: FittedModel = HvdSparkReader(found).trusting(trusted_packages).load(path)
    return model
