"""Where models lie when nobody says so, and of which places a fit warns."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest

from hvdspark.errors import StoreError
from hvdspark.estimators import CTRClassifier, TorchEstimator
from hvdspark.estimators.default_store import check_place, default_uri
from hvdspark.store import Store

NOT_OURS = Path(tempfile.gettempdir()) / f"hvdspark-{os.getuid()}" / "hvdspark"


def test_the_default_store_is_this_users_own_and_stays(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert default_uri({"HOME": str(home)}) == (home / ".local/share/hvdspark").as_uri()
    assert default_uri({"HOME": str(home), "XDG_DATA_HOME": str(home / "d")}) == (home / "d/hvdspark").as_uri()
    assert default_uri({"HOME": "/nonexistent"}) == NOT_OURS.as_uri()
    assert default_uri({}) == NOT_OURS.as_uri()
    assert default_uri({"HOME": str(home), "XDG_DATA_HOME": "not/absolute"}) == NOT_OURS.as_uri()


@pytest.mark.parametrize("estimator", [TorchEstimator, CTRClassifier])
def test_a_default_is_of_the_machine_that_fits(
    estimator: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = estimator()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert made.getStoreUri() == (tmp_path / "hvdspark").as_uri()
    assert made.setStoreUri("s3://b/x").getStoreUri() == "s3://b/x"
    assert "~/.local/share" in made.explainParam("storeUri")


@pytest.mark.parametrize(
    ("place", "warned"),
    [("tmp", True), ("tmp/a/b", True), ("var/tmp/s", True), ("data/hvdspark", False), ("home/tmp/s", False)],
)
def test_a_model_that_hosts_clean_up_is_warned_of(
    place: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders = (str(tmp_path / "tmp"), str(tmp_path / "var/tmp"))
    monkeypatch.setattr("hvdspark.estimators.default_store._CLEANED_UP", folders)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: folders[0])
    check_place(Store((tmp_path / place).as_uri()))
    assert ("hosts clean up" in caplog.text) == warned
    check_place(Store("s3://bucket/tmp/x"))


def test_a_store_that_somebody_else_may_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    tmp_path.chmod(0o1777)
    planted, below = tmp_path / "hvdspark", tmp_path / "hvdspark" / "mine"
    below.mkdir(parents=True)
    planted.chmod(0o777)
    for store in (planted, below):
        with pytest.raises(StoreError, match=r"not this user's alone.*mode 777.*Hint"):
            check_place(Store(store.as_uri()))
    planted.chmod(0o700)
    check_place(Store(planted.as_uri()))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(StoreError, match="is of user"):
        check_place(Store(planted.as_uri()))


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "hvdspark")
