"""Makes the pictures of docs/what-you-see.md: `.venv/bin/python -m docs.pictures`.

It starts a real MLflow server, runs examples/clicks_mlflow.py against it, and looks at what is there with a real
browser without a window. It needs a Chromium (on Debian: apt-get install chromium) and `pip install playwright`. Look
at every picture before you commit it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from pyspark.sql import SparkSession

    from hvdspark.estimators import CTRClassificationModel

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
_COLOURS = 255  # enough for flat colours; a third of the bytes
_WAIT_MS = 30_000
# The menu of training in place of that of prompts and judges, and no assistant that opens itself.
_PLAIN_PAGES = """
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


def missing() -> str:
    """What has to be installed before this can run; "" where nothing has."""
    if importlib.util.find_spec("playwright") is None:
        return "pip install playwright"
    return "" if shutil.which("chromium") else "apt-get install chromium"


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a headless Chromium that reaches this machine alone."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(_WAIT_MS)
        page.route("**/*", lambda route: route.continue_() if _is_here(route.request.url) else route.abort())
        try:
            yield page
        finally:
            chromium.close()


def _is_here(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))


def take(page: Page, name: str, folder: Path, of: str = "") -> None:
    """Write what the page shows, or one element of it, as a small PNG."""
    path = folder / f"{name}.png"
    if of:
        page.locator(of).screenshot(path=path)
    else:
        page.screenshot(path=path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def mlflow_pictures(page: Page, uri: str, folder: Path) -> None:
    """The run, its curves, the loss curve among its files, nested runs and the registered model."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("clicks").experiment_id
    (run,) = client.search_runs([experiment], "attributes.run_name = 'clicks'")
    of_run = f"{uri}/#/experiments/{experiment}/runs/{run.info.run_id}"
    page.add_init_script(_PLAIN_PAGES)

    _open(page, of_run, "Metrics (", height=1500)
    take(page, "mlflow-run", folder)

    _open(page, f"{of_run}/model-metrics", "Add section", height=1400)
    page.get_by_placeholder("Search metric charts").fill("loss|auc|accuracy|rows_per_s")
    _settle(page)
    take(page, "mlflow-curves", folder)

    _open(page, f"{of_run}/artifacts/loss_curve.png", "Path: ", height=900)
    page.locator("img[src^='blob:'], img[src*='loss_curve']").first.wait_for()
    take(page, "mlflow-loss-curve", folder)

    _open(page, f"{uri}/#/experiments/{experiment}/runs", "learning rate", height=640)
    page.get_by_role("row").filter(has_text="learning rate").get_by_role("button").first.click()
    page.get_by_text("learningRate=0.005").first.wait_for()
    page.locator(".ag-header-cell[col-id*='Run Name'] .ag-header-cell-resize").dblclick()  # as wide as the names
    _settle(page)
    take(page, "mlflow-nested-runs", folder)

    _open(page, f"{uri}/#/models/clicks", "champion", height=520)
    take(page, "mlflow-registered-model", folder)


def _open(page: Page, url: str, text: str, height: int) -> None:
    """Show a page of MLflow's, as soon as it has a text. Its connections never rest, so nothing else says when."""
    page.set_viewport_size({"width": 1200, "height": height})
    page.goto("about:blank")
    page.goto(url)
    page.get_by_text(text).first.wait_for()
    _settle(page)


def _settle(page: Page) -> None:
    page.wait_for_timeout(1500)  # charts draw themselves in steps


def notebook_picture(page: Page, shown: list[Any], folder: Path) -> None:
    """What a notebook shows of objects, on a light and on a dark page."""
    parts = "<hr>".join(one._repr_html_() for one in shown)
    for name, colours in (("light", "color:#111;background:#fff"), ("dark", "color:#ddd;background:#111")):
        page.set_content(
            f'<!doctype html><meta charset="utf-8"><div id="cell" style="padding:12px;{colours}">{parts}</div>'
        )
        take(page, f"notebook-{name}", folder, "#cell")


def _session() -> SparkSession:
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false", "spark.sql.shuffle.partitions": 4}
    made: SparkSession = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=PICTURES, help="where pictures go")
    folder: Path = parser.parse_args().folder
    if need := missing():
        sys.exit(f"first: {need}")
    folder.mkdir(exist_ok=True)
    from hvdspark import doctor
    from tests.mlflow_server import mlflow_server

    with tempfile.TemporaryDirectory(prefix="hvdspark-pictures-") as name, mlflow_server(Path(name)) as server:
        spark = _session()
        try:
            model = _example(spark, server.uri, Path(name))
            report = doctor.diagnose(doctor.gather())
        finally:
            spark.stop()
        with browser() as page:
            notebook_picture(page, [model.summary, plan_of_tables(), report], folder)
            mlflow_pictures(page, server.uri, folder)


def _example(spark: SparkSession, uri: str, scratch: Path) -> CTRClassificationModel:
    """Run the example where no git is, whose branches MLflow would show; returns the model of its first run."""
    examples = shutil.copytree(ROOT / "examples", scratch / "examples")
    sys.path.insert(0, str(examples))
    import clicks_mlflow

    sys.argv = [str(examples / "clicks_mlflow.py")]
    model: CTRClassificationModel = clicks_mlflow.run(spark, clicks_mlflow.parse(["--tracking", uri]), scratch)
    return model


def plan_of_tables() -> Any:
    """A plan such as a click model has."""
    from hvdspark.embedding import TableConfig, Traffic, plan_sharding

    tables = [
        TableConfig("item", 16, num_embeddings=10_000_000),
        TableConfig("user", 16),
        TableConfig("country", 16, num_embeddings=240),
    ]
    return plan_sharding(tables, 4, batch_size=8192, traffic={"user": Traffic(8192, 7000, rows=2_000_000)})


if __name__ == "__main__":
    main()
