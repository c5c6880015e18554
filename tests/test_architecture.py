"""The house rules of docs/architecture.md, read off the source: who may import what, and what is packaged."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400

# A part is a module or a folder of hvdspark. It may import itself and the parts of the lines above its own.
LAYERS: list[set[str]] = [
    {"errors", "specs"},
    {"events"},
    {"versions"},
    {"store", "collectives", "horovod_build", "data_generation"},
    {"data", "launch", "embedding"},
    {"models", "artifact"},
    {"train"},
    {"score"},
    {"estimators"},
    {"tracking", "mlflow_flavor", "doctor"},
    {"cli"},
    {"__main__"},
]
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}

# `import hvdspark` itself names the two functions that it loads at first use.
ROOT_MAY_NAME = {"launch"}

# Packages that only these parts may import.
CONFINED = {
    "pyspark.ml": {"estimators"},
    "petastorm": {"data"},
    "horovod": {"collectives", "launch"},
    "mpi4py": {"collectives", "launch"},
    "mlflow": {"tracking", "mlflow_flavor"},
    "fsspec": {"store"},
}

MEANINGLESS_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def sources(*folders: str) -> list[Path]:
    """Python files of these folders, each once (hvdspark/estimators is the same folder as estimators)."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if (ROOT / "hvdspark" / "estimators") not in path.parents]


def part_of(path: Path) -> str:
    """ "data" for hvdspark/data/feed/plan.py, "cli" for hvdspark/cli.py, "" for hvdspark/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts[1:] if parts[0] == "hvdspark" else parts
    return "" if inside[0] == "__init__" else inside[0]


def imported(source: str) -> Iterator[str]:
    """Every module that the text imports anywhere: in functions, under TYPE_CHECKING, by import_module("...")."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: imports are absolute here"
            # The name may be a module of the package or something inside it; both spellings are checked.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)


def forbidden_import(part: str, module: str) -> str | None:
    """Why `part` may not import `module`; None where it may."""
    parts = module.split(".")
    if parts[0] == "estimators":
        return "the package is called hvdspark.estimators"
    if parts[0] != "hvdspark" or len(parts) == 1:
        return None
    target = parts[1]
    if target not in LAYER_OF:
        return None if target.startswith("__") else f"hvdspark.{target} has no place in LAYERS"
    if part == "":
        return None if target in ROOT_MAY_NAME else "import hvdspark has to stay light"
    if target == part or LAYER_OF[target] < LAYER_OF[part]:
        return None
    return f"{target} is not below {part}"


def confined(part: str, module: str) -> str | None:
    for package, parts in CONFINED.items():
        if f"{module}.".startswith(f"{package}.") and part not in parts:
            return f"{package} belongs to {', '.join(sorted(parts))}"
    return None


@pytest.mark.parametrize("path", sources("hvdspark", "estimators"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    assert part == "" or part in LAYER_OF, f"give {part} a place in LAYERS"
    reasons = []
    for module in imported(path.read_text()):
        reason = forbidden_import(part, module) or confined(part, module)
        if reason:
            reasons.append(f"imports {module}: {reason}")
    assert not reasons, f"{path.relative_to(ROOT)}\n" + "\n".join(reasons)


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("data", "import hvdspark.launch.barrier"),
        ("launch", "def f():\n    from hvdspark import train"),
        ("launch", "from hvdspark.train.loop import train"),
        ("store", "if TYPE_CHECKING:\n    from hvdspark.data import plan"),
        ("train", "from pyspark import ml"),
        ("train", "from pyspark.ml.param import Param"),
        ("score", "import horovod.torch as hvd"),
        ("launch", "importlib.import_module('petastorm.reader')"),
        ("data", "from fsspec.core import url_to_fs"),
        ("cli", "import estimators"),
        ("data", "from hvdspark.somewhere_new import x"),
        ("", "from hvdspark.train import loop"),
    ],
)
def test_the_rules_catch(part: str, source: str) -> None:
    assert any(forbidden_import(part, module) or confined(part, module) for module in imported(source))


def test_relative_imports_are_caught() -> None:
    with pytest.raises(AssertionError, match="relative import"):
        list(imported("from . import errors"))


def test_no_name_without_a_meaning() -> None:
    files = sources("hvdspark", "estimators", "tests", "examples", "benchmarks")
    names = {part for path in files for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & MEANINGLESS_NAMES


def test_files_stay_small() -> None:
    files = sources("hvdspark", "estimators", "tests", "examples", "benchmarks")
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    too_long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not too_long, f"over {MAX_LINES} lines; which part is missing? {too_long}"


def test_import_hvdspark_is_light() -> None:
    code = """
        import sys
        import hvdspark, hvdspark.errors, hvdspark.specs, hvdspark.events, hvdspark.versions, hvdspark.cli
        heavy = {"torch", "horovod", "pyspark", "petastorm", "mlflow", "pandas", "numpy", "pyarrow", "fsspec"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        assert {"run", "context", "__version__"} <= set(dir(hvdspark))
        assert hvdspark.run.__module__.startswith("hvdspark.launch")
    """
    run_python(code)


def test_unknown_attribute_of_the_package() -> None:
    import hvdspark

    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        hvdspark.runn  # noqa: B018


def test_estimators_has_one_name() -> None:
    result = subprocess.run([sys.executable, "-c", "import estimators"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert "hvdspark.estimators" in result.stderr


def test_estimators_is_a_relative_symlink() -> None:
    link = ROOT / "hvdspark" / "estimators"
    assert (
        link.is_symlink()
    ), "hvdspark/estimators must be a symbolic link: was the tree copied by a tool that drops them?"
    assert link.readlink() == Path("../estimators")
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-s", str(link)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert listed.stdout.startswith("120000 ")


def test_every_test_has_a_timeout(request: pytest.FixtureRequest) -> None:
    assert 0 < float(request.config.getini("timeout")) <= 120


@pytest.mark.parametrize("unpacked", ["from git", "from a ZIP archive, without the link", "from one, as a text"])
def test_wheel(tmp_path: Path, unpacked: str) -> None:
    # From a copy: setuptools builds inside the source tree, and would pack what an older build left there.
    tree = tmp_path / "tree"
    unwanted = shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=unwanted)
    if unpacked != "from git":
        (tree / "hvdspark" / "estimators").unlink()
    if unpacked == "from one, as a text":
        (tree / "hvdspark" / "estimators").write_text("../estimators")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(tree)], check=True)
    (wheel,) = tmp_path.glob("hvdspark-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {name.split("/")[0] for name in names} == {"hvdspark", wheel.name.split("-py3")[0] + ".dist-info"}
    expected = {str(path.relative_to(ROOT)) for path in sources("hvdspark")}
    expected |= {f"hvdspark/{path.relative_to(ROOT)}" for path in sources("estimators")}
    assert {name for name in names if name.endswith(".py")} == expected
    assert "hvdspark/py.typed" in names
    assert "hvdspark = hvdspark.cli:main" in entry_points


def run_python(code: str) -> None:
    lines = [line.strip() for line in code.strip().splitlines()]
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
