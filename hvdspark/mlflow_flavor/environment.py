"""What a logged model needs to score pandas: packages in the versions of here, and hvdspark itself as code.

hvdspark is no requirement of its own models: it needs Spark and Petastorm, which scoring does not. With its folder in
the model, a score is computed by the code that it was tested with.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import hvdspark

# What `hvdspark.artifact` and `pyfunc` import.
_PACKAGES = ("torch", "numpy", "pandas", "safetensors", "fsspec")
# By scheme, what fsspec needs to read tables that were left where they are.
_OF_SCHEME = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs"}
_NOT_NEEDED = shutil.ignore_patterns("__pycache__", "estimators")


def requirements(tables_uri: str = "") -> list[str]:
    """As pip takes them, pinned, without local version labels ("+cpu"), which no index has.

    Args:
        tables_uri: where tables were left; "" where they come along.
    """
    packages = list(_PACKAGES)
    if (package := _OF_SCHEME.get(tables_uri.partition(":")[0])) is not None:
        packages.append(package)
    return [f"{package}=={importlib.metadata.version(package).partition('+')[0]}" for package in packages]


def copy_code(folder: Path) -> None:
    """Put the package hvdspark into a folder that will be on the path of who scores."""
    shutil.copytree(Path(hvdspark.__file__).parent, folder / "hvdspark", ignore=_NOT_NEEDED, dirs_exist_ok=True)
