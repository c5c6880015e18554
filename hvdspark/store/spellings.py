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
_TOKEN = re.compile(r"(?i)[?&;](sig|token|secret|password|x-amz-\w*)=")
# No file has these in its name, and some readers take a backslash for a slash.
_NO_PATH = re.compile(r"[\x00\\\ud800-\udfff]")
_LONGEST_SHOWN = 300
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
    if carries_credentials(uri):
        raise StoreError(
            "the store URI carries credentials",
            where=where,
            hint="put them into the Hadoop configuration or the environment of the driver and the executors",
        )
    if re.match(r"(?i)file:", uri):
        uri = urllib.parse.unquote(uri)  # pathlib's as_uri() encodes, Spark's paths are not encoded
    if refused := sorted(set(re.findall(r"[?#*%\[\]{}\x00-\x1f\ud800-\udfff]|::", uri))):
        raise StoreError(
            "the store URI has characters that Spark, Petastorm and fsspec read differently",
            value=refused,
            where=where,
            hint="use a plain path without ? # * % [ ] { } and ::",
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


def carries_credentials(uri: str) -> bool:
    """Whether a URI has a password or key in front of its host, or a token behind its path."""
    authority, _, rest = uri.partition("://")[2].partition("/")
    user, _, host = authority.rpartition("@")
    port = host.partition(":")[2]
    # Keys may hold slashes: then the "@" stands in what looks like the path, and the beginning of the key like a port.
    cut_by_a_slash = "@" in rest and not re.fullmatch(r"\d*", port)
    return ":" in user or cut_by_a_slash or bool(_TOKEN.search(uri))


def redacted(uri: str) -> str:
    """A URI as it may be shown, whoever reads along: what may be a secret in it is left out."""
    return f"{uri.partition('://')[0]}://... (credentials are not repeated)" if carries_credentials(uri) else uri


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
    """A path in the store, without slashes around it. StoreError where it leads out of the store, or could be read as
    one that does."""
    if path.startswith("/") or ".." in path.split("/") or _NO_PATH.search(path):
        raise StoreError("a path in the store must be relative to it", value=path[:_LONGEST_SHOWN])
    return path.strip("/")


def joined(base: str, path: str) -> str:
    """The URI, in whatever spelling, of a path in the store."""
    path = checked(path)
    return f"{base.rstrip('/')}/{path}" if path else base
