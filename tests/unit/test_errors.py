from __future__ import annotations

import pickle
from concurrent.futures import CancelledError

import cloudpickle
import pytest

from hvdspark import errors
from hvdspark.errors import ConfigurationError, HvdSparkError, RankFailedError, SchemaError

CLASSES = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, HvdSparkError)]


def test_message_has_what_value_where_hint() -> None:
    error = SchemaError("column not found", value="agee", where="featureCols", hint="did you mean 'age'?")
    assert str(error) == "column not found: 'agee' (in featureCols). Hint: did you mean 'age'?"


def test_parts_that_are_not_given_leave_no_trace() -> None:
    assert str(HvdSparkError("it broke")) == "it broke"
    assert str(HvdSparkError("it broke", hint="mend it")) == "it broke. Hint: mend it"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (False, "False"), ("", "''"), ("x", "'x'"), ("two words", "two words"), ([1], "[1]")],
)
def test_value(value: object, shown: str) -> None:
    assert str(ConfigurationError("bad", value=value)) == f"bad: {shown}"


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not RankFailedError])
def test_crosses_process_boundaries(cls: type[HvdSparkError], dumps: object) -> None:
    error = cls("what", value=3, where="numWorkers", hint="do this")
    again = pickle.loads(dumps(error))  # type: ignore[operator]
    assert type(again) is cls
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.SchemaError, ValueError),
        (errors.DataError, ValueError),
        (errors.StoreError, OSError),
        (errors.StartTimeoutError, TimeoutError),
        (errors.CollectiveTimeoutError, TimeoutError),
        (errors.TrainingDivergedError, ArithmeticError),
        (errors.DependencyError, RuntimeError),
        (errors.FitCancelledError, CancelledError),
        (errors.PreemptedError, RuntimeError),
    ],
)
def test_also_is_what_python_programmers_catch(cls: type[HvdSparkError], builtin: type[Exception]) -> None:
    assert issubclass(cls, builtin)


def test_rank_failed_shows_the_rank_s_own_traceback() -> None:
    error = RankFailedError(
        2,
        "node-7",
        "ValueError: no",
        kind="exception",
        traceback_text="line 1\nline 2\n",
        tail="last words\n",
        hint="x",
    )
    text = str(error)
    assert text.startswith("rank 2 on host node-7 failed: ValueError: no. Hint: x\n")
    assert "--- traceback of rank 2 ---\nline 1\nline 2\n--- last output of rank 2 ---\nlast words" in text
    again = pickle.loads(pickle.dumps(error))
    assert (again.rank, again.host, again.kind, str(again)) == (2, "node-7", "exception", text)


def test_rank_failed_before_ranks_were_given_out() -> None:
    assert str(RankFailedError(None, "h", "lost", kind="executor_lost")) == "an executor on host h failed: lost"
