"""Which versions of Java, Python and the packages work together, and what to do about those that do not.

The table is the support matrix of the README. Everything here is pure or reads installed metadata; no package is
imported, so a broken one can still be reported.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata

from hvdspark.errors import DependencyError


@dataclass(frozen=True)
class Requirement:
    """Versions in [minimum, below) work. `why` ends the sentence "these are needed, because ..."."""

    name: str
    minimum: str
    below: str
    fix: str
    why: str

    @property
    def range(self) -> str:
        return f">={self.minimum},<{self.below}"


_PIP = "python -m pip install"

REQUIREMENTS = {
    requirement.name: requirement
    for requirement in (
        Requirement("Java", "17", "22", "let JAVA_HOME name an OpenJDK 17", "Spark 4 runs on Java 17 and 21"),
        Requirement("Python", "3.10", "3.12", "make the virtual environment with 3.11", "Petastorm imports distutils"),
        Requirement("pyspark", "3.5", "4.1", f"{_PIP} pyspark==4.0.5", "4.1 refuses the pyarrow that Petastorm needs"),
        Requirement("torch", "2.1", "2.15", f"{_PIP} torch==2.13.0", "Horovod 0.28.1 builds against these"),
        Requirement("horovod", "0.28.1", "0.29", "hvdspark install-horovod", "no other release is tested"),
        Requirement("petastorm", "0.12.1", "0.13", f"{_PIP} petastorm==0.12.1", "0.13 and torch exclude each other"),
        Requirement("pyarrow", "11", "15", f"{_PIP} pyarrow==14.0.2", "arrow#39112 removed Petastorm's reader"),
        Requirement("numpy", "1.23", "2", f"{_PIP} numpy==1.26.4", "pyarrow 14 is compiled for numpy 1"),
        Requirement("pandas", "2.0", "3", f"{_PIP} pandas==2.2.3", "pandas 3 needs a later pyarrow"),
    )
}

# What a fit needs on the driver. Java is not here: a session that answers has one that works.
PACKAGES = ("pyspark", "torch", "horovod", "petastorm", "pyarrow", "numpy", "pandas")


def problem(name: str, version: str | None) -> DependencyError | None:
    """Why `version` of `name` (a key of REQUIREMENTS) cannot be used; None where it can. None means not installed."""
    requirement = REQUIREMENTS[name]
    if version is None:
        return DependencyError(f"{name} is not installed", hint=requirement.fix)
    if parse(requirement.minimum) <= parse(version) < parse(requirement.below):
        return None
    return DependencyError(
        f"{name} {requirement.range} is needed, because {requirement.why}", value=version, hint=requirement.fix
    )


def require(*names: str) -> None:
    """Raise DependencyError for the first of `names` ("Python" or installed packages) whose version cannot be used.

    Without names: Python and every package that a fit needs. Takes a millisecond and imports nothing.
    """
    for name in names or ("Python", *PACKAGES):
        error = problem(name, installed(name))
        if error is not None:
            raise error


def installed(name: str) -> str | None:
    """The version of Python, or of a package that can be imported; None where there is none.

    That of a package is what the module itself says if it is loaded already, else what its distribution says. Spark's
    own copy of pyspark (SPARK_HOME/python, or a zip file of YARN) has no distribution, but a file version.py.
    """
    if name == "Python":
        return platform.python_version()
    loaded = getattr(sys.modules.get(name), "__version__", None)
    if isinstance(loaded, str):
        return loaded
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _version_file(name)


def _version_file(name: str) -> str | None:
    """`__version__` in the package's version.py, without importing it."""
    spec = importlib.util.find_spec(name)
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        finder = pkgutil.get_importer(folder)
        found = finder.find_spec("version") if finder is not None else None
        source = getattr(found.loader, "get_source", lambda name: None)("version") if found is not None else None
        if match := re.search(r"""^__version__\b[^=]*=\s*["']([^"']+)""", source or "", re.MULTILINE):
            return match[1]
    return None


def parse(version: str) -> tuple[int, ...]:
    """The leading numbers: "2.13.0+cpu" -> (2, 13, 0), "4.0.0rc1" -> (4, 0, 0); () where there are none."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def java_version(output: str) -> str | None:
    """The version in what `java -version` prints, e.g. "17.0.15"; None where there is none.

    Before 9, Java wrote 1. in front: "1.8.0_392" is returned as "8.0_392".
    """
    match = re.search(r'version "(?:1\.(?=[0-8]\b))?([^"]+)"', output)
    return match.group(1) if match else None
