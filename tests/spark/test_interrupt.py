"""A script that is interrupted or killed leaves no ranks and no files."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.spark

_SCRIPT = """
import os, sys, threading, time
from pathlib import Path
from pyspark.sql import SparkSession
from torch import nn
import hvdspark
from hvdspark.estimators import TorchEstimator

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
store = Path(sys.argv[1])

def train():
    hvdspark.context().report({"event": "busy", "pid": os.getpid()})
    time.sleep(600)

def slow_rows(batches):
    (store.parent / "writing").touch()
    time.sleep(600)
    yield from batches

def tell_when_writing():
    while not (store.parent / "writing").exists():
        time.sleep(0.05)
    print("busy 0", flush=True)

def run():
    hvdspark.run(train, num_workers=2, spark=spark, on_event=lambda event: print("busy", event["pid"], flush=True))

def fit():
    threading.Thread(target=tell_when_writing, daemon=True).start()
    rows = spark.range(100).selectExpr("double(id) AS x", "double(id) AS y").mapInArrow(slow_rows, "x double, y double")
    settings = {"featureCols": ["x"], "labelCol": "y", "storeUri": store.as_uri()}
    TorchEstimator(model=nn.Linear(1, 1), loss="mse", **settings).fit(rows)

for command in sys.stdin:
    try:
        print("result", eval(command), flush=True)
    except KeyboardInterrupt:
        print("interrupted", sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file()), flush=True)
    except BaseException as error:
        print("wrong", type(error), str(error)[:2000].replace(chr(10), " "), flush=True)
"""


class Script:
    """A Python process with a session of its own, which does what it is told."""

    def __init__(self, store: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Spark writes long traces there
            text=True,
        )

    def begin(self, command: str) -> None:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)

    def says(self) -> str:
        """The next line of ours."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("busy", "result", "interrupted", "wrong")):
                return line.strip()
        raise AssertionError("the script has ended")

    def ranks(self) -> list[psutil.Process]:
        words = [self.says().split() for _ in range(2)]
        assert [word for word, _ in words] == ["busy", "busy"]
        return [psutil.Process(int(pid)) for _, pid in words]


@pytest.fixture(scope="module")
def script(spark_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    store = tmp_path_factory.mktemp("interrupted") / "store"
    store.mkdir()
    script = Script(store)
    yield script
    script.process.kill()
    script.process.wait(timeout=10)
    for stream in (script.process.stdin, script.process.stdout):
        if stream is not None:
            stream.close()


def test_an_interrupt_is_a_keyboard_interrupt_and_leaves_nothing(script: Script) -> None:
    script.begin("run()")
    ranks = script.ranks()
    script.process.send_signal(signal.SIGINT)
    assert script.says() == "interrupted []"
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
    script.begin("fit()")
    assert script.says() == "busy 0"
    script.process.send_signal(signal.SIGINT)
    assert script.says() == "interrupted []"
    script.begin("spark.range(5).count()")
    assert script.says() == "result 5"


def test_ranks_do_not_outlive_a_killed_driver(script: Script) -> None:
    """Ends the script."""
    script.begin("run()")
    ranks = script.ranks()
    script.process.kill()
    script.process.wait(timeout=10)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
