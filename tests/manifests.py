"""Manifests that are changed on purpose, by one who knows that they have a checksum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvdspark.store.sealed import unsealed


def said_in(file: Path) -> dict[str, Any]:
    """What a manifest says, without its checksum."""
    said: dict[str, Any] = unsealed(json.loads(file.read_text()))
    return said


def rewritten(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a manifest says, in place."""
    said = said_in(file)
    change(said)
    file.write_text(json.dumps(said))
    (file.parent / f".{file.name}.crc").unlink(missing_ok=True)  # Hadoop's, where it wrote the file
