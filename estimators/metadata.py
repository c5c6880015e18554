"""Spark ML's metadata of what was saved, and the Params in it: held to what they have to be before they are used."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.ml.util import DefaultParamsReader

from hvdspark import __version__
from hvdspark.errors import HvdSparkError, PersistenceError
from hvdspark.plain import built_of_known

logger = logging.getLogger(__name__)

# What JSON that is no metadata, or values that no Param takes, raise in Spark ML and in what puts an object together.
DAMAGE = (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, RecursionError, OverflowError)
_UID = re.compile(r"[\w.\-]{1,200}", re.ASCII)  # it names a run's directory in the store


@dataclass(frozen=True)
class _Metadata:
    """What is read of it; there is more."""

    uid: str
    sparkVersion: str  # Spark ML's name
    paramMap: dict[str, Any]
    defaultParamMap: dict[str, Any]


def check_metadata(metadata: Any, path: str) -> None:
    """Raise PersistenceError unless this is metadata of a stage; `class` may be of any."""
    try:
        found = built_of_known(_Metadata, metadata, "metadata")
        if not isinstance(metadata.get("class"), str) or not _UID.fullmatch(found.uid):
            raise ValueError("class or uid is no name")
    except (TypeError, ValueError) as error:
        raise damaged(error, path) from error


def set_params(instance: Any, metadata: Mapping[str, Any], written_by: str) -> None:
    """Give an instance the uid and the Params that were saved. Those of another version that it has not are left out,
    and named.

    Args:
        metadata: Spark ML's, as `DefaultParamsReader.loadMetadata` returns it.
        written_by: the version that saved it.
    """
    instance._resetUid(metadata["uid"])
    maps = ("paramMap", "defaultParamMap")
    known = {key: {name: v for name, v in metadata[key].items() if instance.hasParam(name)} for key in maps}
    if unknown := sorted(
        {name for key in maps for name in metadata[key]} - {name for key in maps for name in known[key]}
    ):
        given = {name: metadata["paramMap"][name] for name in unknown if name in metadata["paramMap"]}
        logger.warning(
            "%s, saved by %s, has Params that hvdspark %s does not know; they are ignored: %s. Set there: %s",
            metadata["uid"],
            written_by,
            __version__,
            ", ".join(unknown),
            given or "none of them",
        )
    DefaultParamsReader.getAndSetParams(instance, {**metadata, **known})


@contextlib.contextmanager
def damage_named(path: str) -> Iterator[None]:
    """PersistenceError for what a damaged or forged save raises elsewhere; errors of ours say what they say."""
    try:
        yield
    except HvdSparkError:
        raise
    except DAMAGE as error:
        raise damaged(error, path) from error


def damaged(error: Exception, path: str) -> PersistenceError:
    """The error for a save that is not what `save` writes."""
    return PersistenceError(
        f"what was saved here is damaged ({type(error).__name__}: {str(error)[:500]})",
        value=path,
        where="load",
        hint="it is not what save writes: save it again, or restore it from a copy",
    )
