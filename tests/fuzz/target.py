"""What is fuzzed, and what may come of it."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import mutated_bytes, mutated_json

RIGHT, AS_TOLD, WRONG = "right", "as told", "wrong"


class Target(ABC):
    """Something that reads what others wrote.

    Attributes:
        name: of it.
        refusals: exceptions that are a clean answer; those of hvdspark, unless what reads is no user's business.
    """

    name = ""
    refusals: tuple[type[Exception], ...] = ()

    @abstractmethod
    def attempt(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        """A mutation: in words, and what reads the result: it gives one of RIGHT (what the whole file says), AS_TOLD
        (what another file, valid and with right checksums, says) and WRONG, or raises."""

    def close(self) -> None:  # noqa: B027
        """Free what it holds, if it holds something."""


class Files(Target):
    """A directory that is written once, and of which one file is mutated at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.make()
        self._whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        self._changed: set[Path] = set()
        if self.use() != RIGHT:
            raise AssertionError(f"{self.name} is not right as it was written")

    @abstractmethod
    def make(self) -> None:
        """Write what is read."""

    @abstractmethod
    def use(self) -> str:
        """Read it: RIGHT or WRONG."""

    def attempt(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        self.restore()
        path = rng.choice(sorted(self.targets()))
        if path.suffix == ".json" and rng.random() < 0.6:
            text, words = mutated_json(_without_checksum(self._whole[path]), rng)
            return self._named(path, f"{words}, no checksum"), self.put(path, text.encode(), sealed=True)
        content, words = mutated_bytes(self._whole[path], rng)
        sealed = path.suffix != ".json" and rng.random() < 0.5
        return self._named(path, words + ", resealed" * sealed), self.put(path, content, sealed=sealed)

    def restore(self) -> None:
        """Undo what was done."""
        for path in self._changed:
            path.write_bytes(self._whole[path])
        self._changed.clear()

    def targets(self) -> list[Path]:
        """Files that are mutated."""
        return list(self._whole)

    def put(self, path: Path, content: bytes, *, sealed: bool) -> Callable[[], str]:
        """Give a file other content, and what then reads the directory.

        Args:
            sealed: by one who sees to it that no checksum tells of it.
        """
        self._write(path, content)
        if sealed and path.name != "manifest.json":
            sealed = self._reseal(path, content)

        def use() -> str:
            verdict = self.use()
            return AS_TOLD if verdict == WRONG and sealed else verdict

        return use

    def _named(self, path: Path, words: str) -> str:
        return f"{path.relative_to(self.folder)}: {words}"

    def _reseal(self, path: Path, content: bytes) -> bool:
        """Let the manifest have the checksum of a file; False where it is in none."""
        for folder in (path.parent, *path.parents):
            if (manifest := folder / "manifest.json") in self._whole:
                break
        else:
            return False
        said = _without_checksum(self._whole[manifest])
        known = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        name = path.relative_to(manifest.parent).as_posix()
        if name in said["files"]:
            said["files"][name] = known
        for number, tables in enumerate(said.get("tables", [])):
            for entry in tables["files"]:
                if entry["path"] is not None and f"tables/{number}/{entry['path']}" == name:
                    entry.update(known)
        self._write(manifest, json.dumps(said).encode())
        return True

    def _write(self, path: Path, content: bytes) -> None:
        self._changed.add(path)
        path.write_bytes(content)


def _without_checksum(text: bytes) -> Any:
    said = json.loads(text)
    if isinstance(said, dict):
        said.pop("checksum", None)
    return said
