"""What a summary shows: text, HTML of a notebook, axes of matplotlib."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from hvdspark.errors import ConfigurationError, DependencyError
from hvdspark.estimators.summary import TrainingSummary
from hvdspark.rank_limit import RankLimit
from hvdspark.train.program import TrainResult

HISTORY: tuple[dict[str, Any], ...] = tuple(
    {
        "epoch": epoch,
        "train_loss": 0.9 - epoch / 4,
        "val_loss": 0.8 - epoch / 8,
        "val_auc": 0.7 + epoch / 16,
        "learning_rate": 0.001,
        "rows": 320_000,
        "seconds": 12.5,
        "rows_per_s": 25_600.0,
        "loading_seconds": 1.0,
    }
    for epoch in range(3)
)
RESULT = TrainResult(
    history=HISTORY,
    best_epoch=2,
    epochs_run=3,
    stopped=None,
    model_path="runs/r/model",
    outputs=(),
    precision="float32",
    parameters=4,
    seconds={"loading": 1.0, "forward_backward": 3.0},
    warnings=("a label < 0",),
)


def test_text() -> None:
    lines = repr(TrainingSummary(RESULT)).splitlines()
    assert lines[0] == "TrainingSummary: 3 epochs, best 2, float32"
    assert lines[1] == "  epoch 0: train_loss 0.90000, val_loss 0.80000, val_auc 0.70000"
    assert lines[-1] == "  warning: a label < 0"
    assert repr(TrainingSummary(replace(RESULT, stopped="patience"))).splitlines()[0].endswith("stopped by patience")


def test_a_notebook_shows_curves_the_best_epoch_and_warnings() -> None:
    shown = TrainingSummary(RESULT)._repr_html_()
    assert shown.count("<svg") == 2, "losses, and metrics of the validation rows"
    assert shown.count("font-weight:bold") == 1
    for part in ("320,000", "25,600", "0.825", "forward_backward 75 %, loading 25 %", "a label &lt; 0"):
        assert part in shown
    assert "loading_seconds" not in shown


def test_of_one_epoch_there_is_no_curve() -> None:
    shown = TrainingSummary(replace(RESULT, history=HISTORY[:1], best_epoch=0))._repr_html_()
    assert "<svg" not in shown
    assert "<table" in shown


def test_plot_gives_axes() -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    summary = TrainingSummary(RESULT)
    try:
        axes = summary.plot()
        assert [line.get_label() for line in axes.lines] == ["train_loss", "val_loss", "val_auc", "best epoch"]
        assert axes.get_xlabel() == "epoch"
        assert [line.get_label() for line in summary.plot("rows_per_s").lines] == ["rows_per_s", "best epoch"]
        with pytest.raises(ConfigurationError, match="val_acu") as caught:
            summary.plot("val_acu")
        assert "val_auc" in str(caught.value.hint)
    finally:
        plt.close("all")


def test_where_matplotlib_is_missing_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(DependencyError) as caught:
        TrainingSummary(RESULT).plot()
    assert caught.value.hint == "pip install 'hvdspark[plot]'"


GOODPUT = {
    "goodput": 0.625,
    "useful_s": 25.0,
    "wall_s": 40.0,
    "restarts": 2,
    "recoveries_s": [4.25, 3.0],
    "stragglers": {"1": 2},
    "input_stall_s": 1.5,
    "checkpoint_s": 0.75,
}


def test_what_the_fit_had_of_its_time() -> None:
    summary = TrainingSummary(replace(RESULT, goodput=GOODPUT))
    assert (summary.goodput, summary.restarts, summary.recoverySeconds) == (0.625, 2, [4.25, 3.0])
    assert (summary.stragglers, summary.inputStallSeconds, summary.checkpointSeconds) == ({1: 2}, 1.5, 0.75)
    said = (
        "goodput 62 %, 2 restarts, next step after 4.2, 3.0 s, rank 1 late in 2 epochs, waited 1.5 s for batches, "
        "0.8 s for checkpoints"
    )
    assert repr(summary).splitlines()[-2] == f"  {said}"
    assert said in summary._repr_html_()
    calm = TrainingSummary(replace(RESULT, goodput={**GOODPUT, "restarts": 0, "recoveries_s": [], "stragglers": {}}))
    assert "goodput 62 %, no restarts, waited" in repr(calm)
    assert "tables" not in repr(calm)
    tables = {"tables_read_bytes": 3 << 20, "tables_moved_bytes": 1 << 20}
    resized = TrainingSummary(replace(RESULT, goodput={**GOODPUT, **tables}))
    assert (resized.tableBytesRead, resized.tableBytesMoved) == (3 << 20, 1 << 20)
    assert repr(resized).splitlines()[-2].endswith("3.0 MiB of tables read again, 33 % from the store")


def test_what_a_rank_might_use() -> None:
    summary = TrainingSummary(replace(RESULT, memory=RankLimit(3 << 30, 2 << 30, "spark.executor.memoryOverhead")))
    assert (summary.memoryLimit, summary.memorySetting) == (3 << 30, "spark.executor.memoryOverhead")
    said = "a rank might use 3.0 GiB of memory (spark.executor.memoryOverhead)"
    assert repr(summary).splitlines()[-2] == f"  {said}"
    assert said in summary._repr_html_()
    unlimited = TrainingSummary(RESULT)
    assert (unlimited.memoryLimit, unlimited.memorySetting) == (None, "")
    assert "memory" not in repr(unlimited)


def test_a_model_of_before_has_no_goodput() -> None:
    summary = TrainingSummary(RESULT)
    assert (summary.goodput, summary.restarts, summary.stragglers) == (None, 0, {})
    assert "goodput" not in repr(summary) + summary._repr_html_()
