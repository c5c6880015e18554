"""Virtual environments with a few of the packages that are installed here, as links."""

from __future__ import annotations

import importlib.metadata
import re
import venv
from collections.abc import Iterable
from pathlib import Path


def distributions(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """Packages by name, and all that they need here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on another platform
        needed = [line for line in found[name].requires or [] if "extra ==" not in line]
        waiting += [match[0] for line in needed if (match := re.match(r"[A-Za-z0-9._-]+", line))]
    return found


def environment(folder: Path, packages: Iterable[str]) -> Path:
    """An environment with these packages and what they need, and nothing else; its folder of packages.

    Its interpreter is `<folder>/bin/python`.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in distributions(packages).values():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return site
