"""What autologging or a user has written to a run is not written again, and hides nothing."""

from __future__ import annotations

from hvdspark.specs import ColumnSpec
from hvdspark.tracking.entries import Param, Rows, Tag
from hvdspark.tracking.present import Present

OURS = [Param("epochs", "2"), Param("seed", "7"), Param("env", "['TOKEN']")]
ROWS = Rows("training rows", "training", "f" * 32, 600, (ColumnSpec("x", "float32", "scalar"),))


def missing(there: dict[str, str], fitted: str = "") -> dict[str, str]:
    params = Present(there, fitted).missing(OURS, "TorchClassifier")
    return {param.key: param.value for param in params}


def test_an_empty_run_gets_everything() -> None:
    assert missing({}) == {param.key: param.value for param in OURS}


def test_what_autologging_writes_of_our_estimator_is_all_there_is_to_write() -> None:
    there = {"epochs": "2", "seed": "7", "env": "{'TOKEN': 'as it writes it'}"}
    assert missing(there, "TorchClassifier") == {}


def test_stages_of_a_pipeline_have_their_class_in_front() -> None:
    for prefix in ("TorchClassifier", "TorchClassifier_2"):
        there = {"stages": "[...]", f"{prefix}.epochs": "2", f"{prefix}.env": "{}", "StandardScaler.withMean": "True"}
        assert missing(there, "Pipeline") == {"seed": "7"}
    for other in (
        "TorchClassifier_x",
        "TorchClassifier_",
        "_TorchClassifier",
        "TorchRegressor",
        "best_TorchClassifier",
    ):
        assert len(missing({f"{other}.epochs": "2"}, "Pipeline")) == 3


def test_a_name_that_is_taken_gets_the_class_in_front() -> None:
    assert missing({"seed": "-3", "numFolds": "3"}, "CrossValidator") == {
        "epochs": "2",
        "TorchClassifier.seed": "7",
        "env": "['TOKEN']",
    }
    assert "TorchClassifier.seed" not in missing({"seed": "7"}), "that is what it is"


def test_training_rows_are_one_input() -> None:
    assert Present().instead(ROWS) == (ROWS,)
    assert Present(contexts=frozenset({"eval"})).instead(ROWS) == (ROWS,)
    there = Present(contexts=frozenset({"train"}))
    assert there.instead(ROWS) == (
        Tag("hvdspark.training_rows", "600"),
        Tag("hvdspark.training_fingerprint", "f" * 32),
    )
    validation = Rows("validation rows", "validation", "f" * 32, 200, ROWS.columns)
    assert there.instead(validation) == (validation,)
