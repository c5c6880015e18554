"""Makes the pictures of docs/mlflow.md and docs/notebooks.md: `.venv/bin/python -m docs.pictures`.

It starts a real MLflow server, runs examples/clicks_mlflow.py against it, and looks at what is there with a real
browser without a window. It needs a Chromium (on Debian: apt-get install chromium) and `pip install playwright`. Look
at every picture before you commit it.
"""

from __future__ import annotations

import argparse
import importlib.util
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

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
_COLOURS = 96  # enough for flat colours; a quarter of the bytes
_WAIT_MS = 30_000


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

    page.goto(of_run)
    _tidy(page)
    page.get_by_text("val_auc", exact=True).first.scroll_into_view_if_needed()
    _settle(page)
    take(page, "mlflow-run", folder)

    page.goto(f"{of_run}/model-metrics")
    page.get_by_text("val_auc", exact=True).first.wait_for()
    _settle(page)
    take(page, "mlflow-curves", folder)

    page.goto(f"{of_run}/artifacts/loss_curve.png")
    page.locator("img[src^='blob:'], img[src*='loss_curve']").first.wait_for()
    _settle(page)
    take(page, "mlflow-loss-curve", folder)

    page.goto(f"{uri}/#/experiments/{experiment}/runs")
    page.get_by_text("learning rate", exact=True).first.wait_for()
    page.get_by_role("row").filter(has_text="learning rate").get_by_role("button").first.click()
    _settle(page)
    take(page, "mlflow-nested-runs", folder)

    page.goto(f"{uri}/#/models/clicks")
    page.get_by_text("champion").first.wait_for()
    _settle(page)
    take(page, "mlflow-registered-model", folder)


def _tidy(page: Page) -> None:
    """Only what is about the run: no assistant, and the menu of training."""
    page.get_by_text("Created at").first.wait_for()
    page.get_by_text("Model training").first.click()
    if (close := page.get_by_role("button", name="Close")).count():
        close.first.click()


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
    sys.path.insert(0, str(ROOT / "examples"))
    import clicks_mlflow

    from hvdspark import doctor
    from tests.mlflow_server import mlflow_server

    with tempfile.TemporaryDirectory(prefix="hvdspark-pictures-") as name, mlflow_server(Path(name)) as server:
        uri = getattr(server, "uri", server)
        spark = _session()
        try:
            model = clicks_mlflow.run(spark, clicks_mlflow.parse(["--tracking", uri]), Path(name))
            report = doctor.diagnose(doctor.gather())
        finally:
            spark.stop()
        with browser() as page:
            notebook_picture(page, [model.summary, plan_of_tables(), report], folder)
            mlflow_pictures(page, uri, folder)


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
