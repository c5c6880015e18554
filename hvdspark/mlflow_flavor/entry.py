"""What MLmodel says of a model under the flavor's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow.models.model import MLMODEL_FILE_NAME, Model

import hvdspark
from hvdspark.artifact.classes import ClassRule
from hvdspark.artifact.scored import ScoredColumn, Scoring
from hvdspark.errors import PersistenceError
from hvdspark.mlflow_flavor.names import DATA, FLAVOR_NAME


@dataclass(frozen=True)
class Entry:
    """What MLmodel says.

    Attributes:
        scoring: how rows are scored.
        trusted_packages: whose code the description of the module may name. MLmodel also says which module MLflow
            imports and which folder of code comes first: who may write it decides what runs anyway.
        tables: "copied", or the URI where they were left.
    """

    scoring: Scoring
    trusted_packages: tuple[str, ...]
    tables: str

    @classmethod
    def read(cls, directory: Path) -> Entry:
        """Of an MLflow model on this machine. PersistenceError where it has not this flavor."""
        flavors = Model.load(str(directory / MLMODEL_FILE_NAME)).flavors
        if FLAVOR_NAME not in flavors:
            raise PersistenceError(
                "the model has not this flavor",
                value=sorted(flavors),
                where=str(directory),
                hint="hvdspark.mlflow_flavor.log_model writes what is read here",
            )
        said: Mapping[str, Any] = flavors[FLAVOR_NAME]
        return cls(_scoring(said["scoring"]), tuple(said["trusted_packages"]), said["tables"])

    def as_flavor(self) -> dict[str, Any]:
        """What is added to an MLflow model, of plain data."""
        columns = [asdict(column) for column in self.scoring.columns]
        rule = None if self.scoring.rule is None else _plain(asdict(self.scoring.rule))
        return {
            "hvdspark_version": hvdspark.__version__,
            "data": DATA,
            "scoring": {"columns": columns, "handle_invalid": self.scoring.handle_invalid, "rule": rule},
            "trusted_packages": list(self.trusted_packages),
            "tables": self.tables,
        }


def _scoring(said: Mapping[str, Any]) -> Scoring:
    rule = said["rule"]
    return Scoring(
        tuple(ScoredColumn(**column) for column in said["columns"]),
        said["handle_invalid"],
        None if rule is None else ClassRule(**{**rule, "thresholds": tuple(rule["thresholds"])}),
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """YAML has no tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
