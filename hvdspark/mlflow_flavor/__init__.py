"""An MLflow flavor of fitted models: a Transformer again in Spark, and pandas in and out where there is no Spark.

>>> import hvdspark.mlflow_flavor
>>> info = hvdspark.mlflow_flavor.log_model(model, name="clicks", registered_model_name="clicks")
>>> hvdspark.mlflow_flavor.load_model(info.model_uri).transform(frame)
>>> mlflow.pyfunc.load_model(info.model_uri).predict(pandas_frame)

docs/mlflow.md says what is in such a model, and what travels with it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hvdspark.errors import ConfigurationError, DependencyError
from hvdspark.mlflow_flavor.names import FLAVOR_NAME

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.models.model import Model, ModelInfo

    from hvdspark.estimators.model import FittedModel
    from hvdspark.mlflow_flavor.pyfunc import PandasModel

__all__ = ["FLAVOR_NAME", "get_default_pip_requirements", "load_model", "log_model", "save_model"]

CopyTables = Literal[True, "reference"] | None


def get_default_pip_requirements() -> list[str]:
    """What a logged model needs to score pandas, in the versions that are installed here."""
    from hvdspark.mlflow_flavor.environment import requirements

    return requirements()


def save_model(
    model: FittedModel,
    path: str,
    *,
    copy_tables: CopyTables = None,
    signature: ModelSignature | Literal[False] | None = None,
    input_example: Any = None,
    pip_requirements: Sequence[str] | str | None = None,
    extra_pip_requirements: Sequence[str] | str | None = None,
    code_paths: Sequence[str] = (),
    trusted_packages: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    mlflow_model: Model | None = None,
) -> None:
    """Save a fitted model as an MLflow model, on this machine. No Spark session is needed.

    Args:
        model: what the `fit` of an estimator of `hvdspark.estimators` returned, or what was loaded.
        path: a directory that is empty or not there.
        copy_tables: what becomes of the files of sharded embedding tables. True copies them; "reference" leaves them
            where they are, and whoever scores has to reach that place for as long as the model is used. None copies
            them up to 1 GiB together, and refuses more: a model of 10 GB does not travel by accident.
        signature: None derives it from the columns of training; False leaves it out, and with it MLflow's checks.
        input_example: some rows, as a DataFrame of pandas or Spark (of that the first 5); they become a file of the
            model, readable by whoever may read that. Without it no row leaves the store.
        pip_requirements: instead of `get_default_pip_requirements()`.
        extra_pip_requirements: beside these.
        code_paths: files and folders of your own code that the model takes along: where the class of its module is.
        trusted_packages: names of packages that the environment of scoring has, and whose code the model may name;
            those in `code_paths` are.
        metadata: of your own, kept in MLmodel.
        mlflow_model: what MLflow adds the flavor to.

    Raises:
        ConfigurationError: the tables are too many bytes to be copied unasked.
        DataError: input_example lacks a feature column.
        PersistenceError: the model names code that scoring would not have, or was fitted with allowPickle=True and
            cannot be described.
        CheckpointError, StoreError: its weights or tables are gone, damaged, or cannot be written.
        DependencyError: MLflow is not installed.
    """
    _check_mlflow()
    from hvdspark.mlflow_flavor.saving import save

    if copy_tables not in (True, "reference", None):
        raise ConfigurationError(
            "unknown choice", value=copy_tables, where="copy_tables", hint='True, "reference", or leave it out'
        )
    save(
        model,
        Path(path),
        mlflow_model,
        copy_tables=copy_tables,
        signature=signature,
        input_example=input_example,
        pip_requirements=pip_requirements,
        extra_pip_requirements=extra_pip_requirements,
        code_paths=code_paths,
        trusted_packages=trusted_packages,
        metadata=metadata,
    )


def log_model(
    model: FittedModel,
    name: str | None = None,
    *,
    registered_model_name: str | None = None,
    registered_model_alias: str | None = None,
    **options: Any,
) -> ModelInfo:
    """Log a fitted model to the active run, or a new one, as `mlflow.<flavor>.log_model` do.

    Args:
        model: as of `save_model`.
        name: of the logged model.
        registered_model_name: also register it under this name, as a new version.
        registered_model_alias: give that version this alias: `models:/<registered_model_name>@<alias>` is it.
        options: what else `save_model` takes, and `mlflow.models.Model.log`: `params`, `tags`, `step`, ...

    Returns:
        what MLflow knows of it, such as `model_uri`.

    Raises: as `save_model`, and MLflow's own errors: nothing is swallowed here.
    """
    _check_mlflow()
    from mlflow import MlflowClient
    from mlflow.models.model import Model

    if registered_model_alias and not registered_model_name:
        raise ConfigurationError("an alias is of a registered model", where="registered_model_name", hint="name it")
    if "artifact_path" in options:
        raise ConfigurationError("MLflow 3 calls it name", value=options["artifact_path"], where="artifact_path")
    info: ModelInfo = Model.log(
        artifact_path=None,
        flavor=sys.modules[__name__],
        name=name,
        model=model,
        registered_model_name=registered_model_name,
        **options,
    )
    if registered_model_alias:
        version = str(info.registered_model_version)
        MlflowClient().set_registered_model_alias(str(registered_model_name), registered_model_alias, version)
    return info


def load_model(model_uri: str, dst_path: str | None = None, dfs_tmpdir: str | None = None) -> FittedModel:
    """A logged model as the Transformer that it was, in the Spark session that is there, or a new one.

    Args:
        model_uri: `models:/name@alias`, `models:/name/version`, `runs:/...`, a path, or any other URI of MLflow's.
        dst_path: directory that MLflow downloads the model to; it has to stay for as long as the model is used.
        dfs_tmpdir: directory or URI that driver and executors reach; the model is copied there, and stays there. Not
            needed where Spark runs on this machine alone. Else it is MLFLOW_DFS_TMP where that is set.

    Raises:
        ConfigurationError: executors would not reach what was downloaded.
        PersistenceError, CheckpointError, StoreError: as the `load` of the model's class.
        DependencyError: MLflow is not installed.
    """
    _check_mlflow()
    from hvdspark.mlflow_flavor.loading import load

    return load(model_uri, dst_path, dfs_tmpdir)


def _load_pyfunc(path: str) -> PandasModel:
    """What `mlflow.pyfunc.load_model` calls, with the directory of the model's data."""
    from hvdspark.mlflow_flavor.pyfunc import PandasModel

    return PandasModel.read(Path(path))


def _check_mlflow() -> None:
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "MLflow is not installed", value=str(error), hint="pip install 'hvdspark[mlflow]'"
        ) from error
