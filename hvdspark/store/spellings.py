"""One URI in the spelling of each reader. This is the only place that knows.

The same directory has a different name for each reader:

    given              Spark                    fsspec and Petastorm     plain files
    /data/x            file:///data/x           file:///data/x           /data/x
    s3://b/x           s3a://b/x                s3://b/x                 -
    dbfs:/x, /dbfs/x   dbfs:/x                  file:///dbfs/x           /dbfs/x
    /Volumes/c/x       dbfs:/Volumes/c/x        file:///Volumes/c/x      /Volumes/c/x
    abfss://c@a/x      abfss://c@a/x            abfs://c@a/x             -
    hdfs://nn/x        hdfs://nn/x              hdfs://nn/x              -
"""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

from hvdspark.errors import StoreError

# Rename is one step there; elsewhere a single write is.
RENAMING = {"hdfs", "webhdfs", "viewfs"}

_SPARK_SCHEME = {"s3": "s3a", "s3n": "s3a", "gcs": "gs"}
_FSSPEC_SCHEME = {"s3a": "s3", "abfss": "abfs", "viewfs": "hdfs"}


def canonical(uri: str, where: str = "store_uri") -> str:
    """The Spark form of a URI, without a final slash.

    Args:
        where: what it was given as, for errors.

    Raises:
        StoreError: it is empty, malformed, of an unknown scheme, or carries credentials.
    """
    if not isinstance(uri, str) or not uri.strip():
        raise StoreError("the store URI is empty", value=uri, where=where, hint="for example file:///data/hvdspark")
    if re.search(r"://[^/]*:[^/]*@", uri):
        raise StoreError(
            "the store URI carries credentials",
            where=where,
            hint="put them into the Hadoop configuration or the environment of the driver and the executors",
        )
    if re.match(r"(?i)file:", uri):
        uri = urllib.parse.unquote(uri)  # pathlib's as_uri() encodes, Spark's paths are not encoded
    if refused := sorted(set(re.findall(r"[?#*%\[\]{}\x00-\x1f]", uri))):
        raise StoreError(
            "the store URI has characters that Spark, Petastorm and fsspec read differently",
            value=refused,
            where=where,
            hint="use a plain path without ? # * % [ ] { }",
        )
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)$", uri)
    scheme, rest = (match[1].lower(), match[2]) if match else ("file", str(Path(uri).expanduser().absolute()))
    if scheme in {"file", "dbfs"}:
        path = os.path.normpath("/" + rest.lstrip("/"))
        if scheme == "file" and rest.startswith("//") and not rest.startswith("///"):
            raise StoreError("a file URI has no host", value=uri, where=where, hint=f"did you mean file:/{rest}?")
        if scheme == "file" and path.startswith("/dbfs/"):
            return f"dbfs:{path.removeprefix('/dbfs')}"
        return f"dbfs:{path}" if scheme == "dbfs" or path.startswith("/Volumes/") else f"file://{path}"
    scheme = _SPARK_SCHEME.get(scheme, scheme)
    if not rest.startswith("//") or (scheme not in RENAMING | {"memory"} and not rest[2:].split("/")[0]):
        raise StoreError("the store URI names no bucket or host", value=uri, where=where, hint=f"{scheme}://NAME/PATH")
    if scheme not in _known_schemes():
        raise StoreError(
            "unknown scheme of a store URI", value=scheme, where=where, hint="file, s3a, gs, abfss, hdfs or dbfs"
        )
    host, _, path = rest[2:].partition("/")
    return f"{scheme}://{host}/{path.strip('/')}".rstrip("/") if host or path else f"{scheme}:///"


def _known_schemes() -> set[str]:
    from fsspec.registry import known_implementations

    return {*known_implementations, *_FSSPEC_SCHEME}


def fsspec_form(uri: str) -> str:
    """The spelling that fsspec and Petastorm know, of a canonical URI."""
    scheme, rest = uri.split(":", 1)
    if scheme == "dbfs":
        return f"file://{rest}" if rest.startswith("/Volumes/") else f"file:///dbfs{rest}"
    return f"{_FSSPEC_SCHEME.get(scheme, scheme)}:{rest}"


def checked(path: str) -> str:
    """A path in the store, without slashes around it. StoreError where it leads out of the store."""
    if path.startswith("/") or ".." in path.split("/") or "\x00" in path:
        raise StoreError("a path in the store must be relative to it", value=path)
    return path.strip("/")


def joined(base: str, path: str) -> str:
    """The URI, in whatever spelling, of a path in the store."""
    path = checked(path)
    return f"{base.rstrip('/')}/{path}" if path else base
