"""Manifests that tell whether they are what was written: with a checksum of what they say, not of how it is spelled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"


def sealed(manifest: Mapping[str, Any]) -> str:
    """JSON text of a manifest and its checksum."""
    as_read = json.loads(json.dumps(manifest))
    return json.dumps({**as_read, CHECKSUM: _checksum(as_read)}, sort_keys=True)


def unsealed(said: Any) -> Any:
    """What `sealed` was given, of its parsed text. Manifests of earlier versions have no checksum.

    Raises:
        ValueError: it says something else than what was written.
    """
    if not isinstance(said, dict) or CHECKSUM not in said:
        return said
    rest = {name: value for name, value in said.items() if name != CHECKSUM}
    if said[CHECKSUM] != _checksum(rest):
        raise ValueError(f"it is not what was written; who changes one on purpose removes its {CHECKSUM!r}")
    return rest


def _checksum(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
