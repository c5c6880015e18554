"""Fits whose server is full, silent, gone, or refuses: a program that answers as we like, in a thread.

What a real server makes of a fit is in `tests/spark/test_tracking.py`.
"""

from __future__ import annotations

import http.server
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hvdspark.events import DatasetReady, EpochEnded, FitEnded, FitStarted, PhaseStarted
from hvdspark.fan_out import FanOut
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroup, RowGroups
from hvdspark.tracking import Caller, listeners
from hvdspark.tracking.curve import drawn
from hvdspark.tracking.entries import Curve, Rows
from hvdspark.tracking.server import dataset_input
from hvdspark.tracking.writer import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

RUN = {"run": {"info": {"run_id": "r1", "run_uuid": "r1", "experiment_id": "0", "status": "RUNNING"}, "data": {}}}
COLUMNS = (ColumnSpec("x", "float32", "fixed", 3), ColumnSpec("y", "int64", "scalar"))
DATA = DatasetSpec("d", COLUMNS, RowGroups.of([RowGroup("a", 0, 600)]))
HISTORY = tuple({"epoch": epoch, "train_loss": 0.5, "seconds": 1.0} for epoch in range(3))
WAIT_S = 60.0


@dataclass
class Server:
    """Answers `answer(path)`: a status and what it says.

    Attributes:
        asked: the paths of requests, in order.
        created: of each run that was made, the id of its experiment.
    """

    answer: Callable[[str], tuple[int, object]]
    asked: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    uri: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(lambda path: (200, {}))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name = self.path.rpartition("mlflow/")[2]
            made.asked.append(name)
            if name == "runs/create":
                made.created.append(json.loads(asked)["experiment_id"])
            status, said = (200, RUN) if name == "runs/create" else made.answer(name)
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PATCH = do_PUT = do_POST

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.uri = f"http://127.0.0.1:{serving.server_address[1]}"
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield made
    serving.shutdown()
    thread.join()
    serving.server_close()


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What the first fit would wait for, and the files that matplotlib keeps open."""
    import mlflow.tracking  # noqa: F401

    figure = drawn(Curve("", HISTORY, 0))
    assert figure is not None
    figure.savefig(io.BytesIO())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    # The client's own patience is minutes.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def fit(uri: str) -> float:
    """The seconds that the events of a fit of no time take."""
    started = time.monotonic()
    told = FanOut("run", listeners(uri, Caller(), "a-fit", "E"))
    with told.fit(FitStarted("E_1", {"epochs": 3}, ("x",), ("y",), None, 1)):
        told.emit(PhaseStarted("materialize"))
        told.emit(DatasetReady(DATA))
        for row in HISTORY:
            told.emit(EpochEnded(row["epoch"], row))  # type: ignore[arg-type]
    told.emit(FitEnded("file:///m", HISTORY, 2, None))
    return time.monotonic() - started


def written() -> None:
    for thread in threading.enumerate():
        if thread.name == "hvdspark-MLflow":
            thread.join(WAIT_S)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name == "hvdspark.tracking.writer"]
    return [record.getMessage() for record in ours if record.levelno == logging.WARNING]


def test_a_server_that_is_full(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.answer = lambda path: (507, {"error_code": "INTERNAL_ERROR", "message": "no space left on device"})
    assert fit(server.uri) < PATIENCE.grace_s + 2
    written()
    said, lost = warnings(caplog)
    assert said.startswith("MLflow failed, the fit goes on: ")
    assert "no space left on device" in said
    assert lost.startswith("MLflow did not take everything; lost: 1 Param, ")
    assert "1 dataset, 1 figure" in lost


def test_a_server_that_refuses_one_thing_gets_the_others(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    refusal = {"error_code": "INVALID_PARAMETER_VALUE", "message": "not this"}
    server.answer = lambda path: (400, refusal) if path == "runs/log-inputs" else (200, {})
    fit(server.uri)
    written()
    assert {"runs/create", "runs/log-batch", "runs/log-inputs", "runs/update"} <= set(server.asked)
    said, lost = warnings(caplog)
    assert "not this" in said
    assert "1 dataset" in lost
    assert "metric" not in lost


def test_a_server_that_is_silent_is_not_waited_for(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    heard = threading.Event()

    def silent(path: str) -> tuple[int, object]:
        heard.wait(WAIT_S)
        return 200, {}

    server.answer = silent
    assert fit(server.uri) < PATIENCE.grace_s + 1
    heard.set()
    written()
    assert warnings(caplog)[0].startswith("MLflow has not taken everything yet")
    assert "runs/update" in server.asked, "what was left is written when the fit is over"


def test_nobody_is_there(caplog: pytest.LogCaptureFixture) -> None:
    assert fit("http://127.0.0.1:9") < PATIENCE.grace_s + 2
    written()
    said, lost = warnings(caplog)
    assert "127.0.0.1" in said
    assert "1 Param, " in lost


def test_the_dataset_is_one_that_mlflow_reads() -> None:
    import mlflow.data

    made = dataset_input(Rows("training rows", "training", "f" * 32, 600, COLUMNS))
    assert json.loads(made.dataset.profile) == {"num_rows": 600}
    assert [(tag.key, tag.value) for tag in made.tags] == [("mlflow.data.context", "training")]
    schema = mlflow.types.Schema.from_json(json.dumps(json.loads(made.dataset.schema)["mlflow_colspec"]))
    assert schema.input_names() == ["x", "y"]
    assert mlflow.data.get_source(made).to_dict()["tags"]["mlflow.source.type"]


def test_the_password_of_an_address_is_in_no_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hvdspark")
    fit("http://ann:s3cret@127.0.0.1:9")
    written()
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("hvdspark"))
    assert "***@127.0.0.1" in said
    assert "s3cret" not in said


@pytest.mark.parametrize(("chosen", "same", "expected"), [("5", False, "0"), ("5", True, "5"), (None, False, "5")])
def test_an_experiment_of_another_server_is_not_taken_for_one_of_this(
    server: Server,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    chosen: str | None,
    same: bool,
    expected: str,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri if same else tmp_path.as_uri())
        patch.setenv("MLFLOW_EXPERIMENT_ID", "5")  # as mlflow.set_experiment does
        patch.setattr("mlflow.tracking.fluent._active_experiment_id", chosen)
        fit(server.uri)
        written()
    assert server.created == [expected]
    assert ("MLFLOW_EXPERIMENT_NAME" in caplog.text) == (expected == "0")
