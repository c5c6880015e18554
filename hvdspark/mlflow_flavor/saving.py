"""Writing an MLflow model:

MLmodel, requirements.txt, conda.yaml, python_env.yaml     MLflow's own
input_example.json                                         only where one was given
model/                                                     what `model.save(path)` writes
code/hvdspark/, code/...                                   what scores it, and code of the user's own
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlflow.pyfunc
import yaml
from mlflow.models import ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME, Model
from mlflow.models.utils import _save_example
from mlflow.utils.environment import _process_pip_requirements, _PythonEnv
from mlflow.utils.model_utils import _validate_and_copy_code_paths, _validate_and_prepare_target_save_path

from hvdspark.artifact.tables import table_files
from hvdspark.artifact.trust import packages_named
from hvdspark.embedding.plan.sharding import format_bytes
from hvdspark.errors import ConfigurationError, DataError, PersistenceError
from hvdspark.mlflow_flavor.entry import Entry
from hvdspark.mlflow_flavor.environment import copy_code, requirements
from hvdspark.mlflow_flavor.names import CODE, DATA, FLAVOR_NAME, LOADER
from hvdspark.mlflow_flavor.signature import signature_of
from hvdspark.store import Store
from hvdspark.store.swap import replaced

if TYPE_CHECKING:
    import pandas as pd

    from hvdspark.estimators.model import FittedModel, Portable

logger = logging.getLogger(__name__)

# What the files of sharded tables may come to that are copied unasked: minutes through a driver's disk and an HTTP
# artifact store, and no surprise on any disk.
MOST_COPIED_UNASKED = 1 << 30
_EXAMPLE_ROWS = 5
_LONGEST_LIST = 4096  # of a sparse vector; wider ones do not become lists in training either
_LOCAL = "file:"


def save(
    model: FittedModel,
    path: Path,
    mlflow_model: Model | None,
    *,
    copy_tables: Literal[True, "reference"] | None,
    signature: ModelSignature | Literal[False] | None,
    input_example: Any,
    pip_requirements: Sequence[str] | str | None,
    extra_pip_requirements: Sequence[str] | str | None,
    code_paths: Sequence[str],
    trusted_packages: Sequence[str],
    metadata: Mapping[str, Any] | None,
) -> None:
    """See `hvdspark.mlflow_flavor.save_model`."""
    from hvdspark.estimators.model import FittedModel
    from hvdspark.estimators.persistence import saved_of, write_alone

    if not isinstance(model, FittedModel):
        raise ConfigurationError(
            "not a fitted model of hvdspark",
            value=type(model).__name__,
            where="model",
            hint="mlflow.spark.log_model takes a PipelineModel with our stages",
        )
    portable, saved = model.portable(), saved_of(model)
    trusted = (*trusted_packages, *(Path(code).stem for code in code_paths))
    _check_code(saved.state["objects"], trusted)
    tables = _where_tables_go(copy_tables, saved.tables, *saved.tables_at)
    example = None if input_example is None else _example(input_example, portable)

    if path.exists():
        _validate_and_prepare_target_save_path(str(path))  # MLflow's own error where there is something in it
    described = Model() if mlflow_model is None else mlflow_model
    if signature is not False:
        described.signature = signature or signature_of(portable.inputs, portable.scoring)
    if metadata is not None:
        described.metadata = dict(metadata)
    entry = Entry(portable.scoring, trusted, tables)
    with replaced(Store(str(path), "path")) as complete:
        new = Path(complete.path())
        write_alone(model, saved, Store(str(new / DATA), "path"), tables=tables == "copied")
        _validate_and_copy_code_paths(list(code_paths) or None, str(new))
        copy_code(new / CODE)
        if example is not None:
            _save_example(described, example, str(new))
        _describe(described, entry, new)
        _write_environment(
            new, requirements("" if tables == "copied" else tables), pip_requirements, extra_pip_requirements
        )


def _describe(described: Model, entry: Entry, path: Path) -> None:
    """Write MLmodel, beside all that the model consists of."""
    environment = {"conda_env": "conda.yaml", "python_env": "python_env.yaml"}
    mlflow.pyfunc.add_to_model(described, loader_module=LOADER, data=DATA, code=CODE, **environment)
    described.add_flavor(FLAVOR_NAME, **entry.as_flavor())
    described.model_size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    described.save(str(path / MLMODEL_FILE_NAME))


def _check_code(description: Mapping[str, Any], trusted: Sequence[str]) -> None:
    if "module" not in description:
        raise PersistenceError(
            "the module of this model is a pickle, which is loaded in a Spark session alone",
            hint="mlflow.spark.log_model takes it; or build the module of plain data, and fit without allowPickle",
        )
    if missing := sorted(packages_named(dict(description)) - {*trusted}):
        raise PersistenceError(
            "the model names code that whoever scores it may not have",
            value=missing,
            hint=f"code_paths=[...] takes the folder or file of {missing[0]} along; where it is installed, as by "
            f"extra_pip_requirements=[...], say trusted_packages={missing}",
        )


def _where_tables_go(
    copy_tables: Literal[True, "reference"] | None, tables: Sequence[Mapping[str, Any]], store_uri: str, directory: str
) -> str:
    """ "copied", or the URI of the store where the tables are left.

    Raises:
        ConfigurationError: they are too large to be copied unasked.
    """
    size = sum(entry["bytes"] for entry in table_files(tables))
    if copy_tables is None and size > MOST_COPIED_UNASKED:
        raise ConfigurationError(
            f"the embedding tables of this model are {format_bytes(size)}, more than the "
            f"{format_bytes(MOST_COPIED_UNASKED)} that are copied unasked",
            value=f"{store_uri}/{directory}",
            where="copy_tables",
            hint="True copies them, through the disk of this machine into MLflow's artifact store; 'reference' leaves "
            "them where they are, and whoever scores has to reach that place",
        )
    if copy_tables != "reference" or not tables:
        logger.info("%s of embedding tables travel with the model", format_bytes(size))
        return "copied"
    if store_uri.startswith(_LOCAL):
        logger.warning("the tables stay in %s: only this host, or hosts that mount it, can score the model", store_uri)
    return store_uri


def _example(given: Any, portable: Portable) -> pd.DataFrame:
    """Some rows of the feature columns, of values that JSON has. DataError where a column is missing."""
    import pandas as pd

    names = [column.name for column in portable.inputs.features]
    if not hasattr(given, "columns"):
        one_row = isinstance(given, Mapping) and all(map(pd.api.types.is_scalar, given.values()))
        given = pd.DataFrame([given] if one_row else given)
    if missing := [name for name in names if name not in given.columns]:
        hint = f"give rows that have all feature columns; these have {[*given.columns]}"
        raise DataError("a feature column is missing", value=missing, where="input_example", hint=hint)
    if hasattr(given, "toPandas"):
        from hvdspark.data.dataset.schema import quoted

        given = given.select(*map(quoted, names)).limit(_EXAMPLE_ROWS).toPandas()
    lists = {name: [_as_json(value) for value in given[name]] for name in names if given[name].dtype == object}
    return given[names].assign(**lists)


def _as_json(value: Any) -> Any:
    """A vector of Spark or an array of numpy as JSON has it; everything else as it is."""
    if hasattr(value, "toArray") and hasattr(value, "indices") and value.size > _LONGEST_LIST:
        return {"size": value.size, "indices": value.indices.tolist(), "values": value.values.tolist()}
    if hasattr(value, "toArray"):
        value = value.toArray()
    return value.tolist() if hasattr(value, "tolist") else value


def _write_environment(
    path: Path, default: list[str], wanted: Sequence[str] | str | None, extra: Sequence[str] | str | None
) -> None:
    conda, pip, constraints = _process_pip_requirements(default, wanted, extra)
    (path / "conda.yaml").write_text(yaml.safe_dump(conda, default_flow_style=False))
    (path / "requirements.txt").write_text("\n".join(pip))
    if constraints:
        (path / "constraints.txt").write_text("\n".join(constraints))
    _PythonEnv.current().to_yaml(str(path / "python_env.yaml"))
