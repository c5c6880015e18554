"""Where fitted models lie when nobody says so, and what is said of a place that hosts clean up."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from pyspark.sql import SparkSession

from hvdspark.errors import StoreError
from hvdspark.launch import hosts_without, on_many_hosts
from hvdspark.store import Store

logger = logging.getLogger(__name__)

_CLEANED_UP = ("/tmp", "/var/tmp", "/dev/shm")


def default_uri(environ: Mapping[str, str] = os.environ) -> str:
    """The store of who names none: this user's own directory for data.

    `$XDG_DATA_HOME/hvdspark`, else `~/.local/share/hvdspark`; where that cannot be made, as in some containers, a
    directory of this user among the temporary files.
    """
    base = Path(environ.get("XDG_DATA_HOME") or Path(environ.get("HOME") or "/") / ".local" / "share")
    nearest = next(folder for folder in (base, *base.parents) if folder.exists())
    if not base.is_absolute() or nearest == Path("/") or not os.access(nearest, os.W_OK | os.X_OK):
        base = Path(tempfile.gettempdir()) / f"hvdspark-{os.getuid()}"
    return (base / "hvdspark").as_uri()


def check_place(store: Store) -> None:
    """Warn of a store among temporary files, where a fitted model would not stay.

    Raises:
        StoreError: somebody else has put a directory of this name there, where all may write: what lies in it could be
            theirs.
    """
    local = store.local_path()
    temporary = {Path(folder) for folder in (*_CLEANED_UP, tempfile.gettempdir())}
    if local is None or not temporary & {local, *local.parents}:
        return
    for folder in (local, *local.parents):
        if not folder.exists() or not folder.parent.stat().st_mode & 0o002:
            continue
        found = folder.stat()
        if folder not in temporary and (found.st_uid != os.getuid() or found.st_mode & 0o002):
            raise StoreError(
                "the store is not this user's alone",
                value=f"{folder} is of user {found.st_uid}, mode {found.st_mode & 0o7777:o}",
                where="storeUri",
                hint="name a directory of your own: in one that all may write, whoever comes first decides",
            )
    logger.warning(
        "the fitted model will lie in %s, among files that hosts clean up: set storeUri, or save() the model", store.uri
    )


def check_reached(spark: SparkSession, store: Store, *, chosen: bool) -> None:
    """StoreError where executors run on hosts that do not see a store on the driver's own disk.

    Args:
        chosen: whether the user has named it.
    """
    local = store.local_path()
    if local is None or not on_many_hosts(spark):
        return
    there, probe = store.exists(), f"seen-{uuid.uuid4().hex}"
    store.write_text(probe, "")
    try:
        blind = hosts_without(spark, str(local / probe))
    finally:
        store.delete(probe)
    if blind:
        if not there:
            with contextlib.suppress(OSError):  # another candidate of a search looks, too
                local.rmdir()
        place = "this directory" if chosen else "storeUri is not set, and its default"
        raise StoreError(
            f"{place} is on the driver's own disk, which executors on other hosts do not see",
            value=f"{store.uri} is not on {', '.join(blind[:5])}{', ...' if len(blind) > 5 else ''}",
            where="storeUri",
            hint="set storeUri to what the driver and all executors reach under one name: s3a://bucket/folder, "
            "hdfs://namenode/folder, or a path that is mounted on all of them",
        )
