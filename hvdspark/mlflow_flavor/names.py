"""Names that MLmodel has: of the flavor, and of what lies beside it."""

from __future__ import annotations

FLAVOR_NAME = "hvdspark"
LOADER = "hvdspark.mlflow_flavor"  # the module whose `_load_pyfunc` MLflow calls
DATA = "model"  # the directory that `model.save(path)` would have written
CODE = "code"
