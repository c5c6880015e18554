"""The house rules of docs/layers.md, read off the source: who may import what, how long files are, what is packaged."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.source_tree import (
    CONFINED,
    LAYERS,
    ROOT,
    Module,
    circles,
    functions,
    imported,
    modules,
    sources,
    uses_of_private_names,
)

MAX_LINES, MAX_FUNCTION_LINES = 350, 80
MAX_LINES_ELSEWHERE = 400  # tests, examples, benchmarks

MODULES = modules()

# `import hvdspark` itself names the two functions that it loads at first use.
ROOT_MAY_NAME = {"launch"}
# Scores where none of these is installed.
WITHOUT_SPARK = {"artifact": ("pyspark", "petastorm", "horovod", "pyarrow", "pandas", "cloudpickle")}

# Attributes of torch and Horovod that some class of ours has, too.
OF_OTHER_LIBRARIES = {"_buffers", "_values", "_handles"}

MEANINGLESS_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def forbidden_import(importer: str, target: str) -> str | None:
    """Why the module `importer` may not import `target`; None where it may."""
    if target.split(".")[0] == "estimators":
        return "the package is called hvdspark.estimators"
    for package, numbers in LAYERS.items():
        if not (f"{importer}.".startswith(f"{package}.") and target.startswith(f"{package}.")):
            continue
        part, other = (name[len(package) + 1 :].split(".")[0] for name in (importer, target))
        if other.startswith("__") or other == part:
            continue
        if package == "hvdspark" and part == "":
            return None if other in ROOT_MAY_NAME else "import hvdspark has to stay light"
        if part == "":  # what a folder exports
            continue
        if other not in numbers:
            if package != "hvdspark":  # `from hvdspark.data import Ragged`: of the folder's own __init__
                return f"inside {package}, {target} is imported from where it is defined"
            return f"{target} has no place in docs/layers.md"
        if numbers[other] >= numbers[part]:
            return f"{other} is not below {part}"
    return None


def confined(importer: str, target: str) -> str | None:
    part = importer[len("hvdspark.") :].split(".")[0]
    for package, parts in CONFINED.items():
        if f"{target}.".startswith(f"{package}.") and part not in parts:
            return f"{package} belongs to {', '.join(sorted(parts))}"
    for package in WITHOUT_SPARK.get(part, ()):
        if f"{target}.".startswith(f"{package}."):
            return f"{part} does without {package}"
    return None


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_imports_go_one_way(module: Module) -> None:
    for package, numbers in LAYERS.items():
        if f"{module.name}.".startswith(f"{package}."):
            part = module.part_of(package)
            assert part == "" or part in numbers, f"give {part} of {package} a place in docs/layers.md"
    reasons = []
    for target in imported(module.tree):
        reason = forbidden_import(module.name, target) or confined(module.name, target)
        if reason:
            reasons.append(f"imports {target}: {reason}")
    assert not reasons, f"{module.name}\n" + "\n".join(reasons)


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("hvdspark.data.feed.plan", "import hvdspark.launch.barrier"),
        ("hvdspark.launch.rank", "def f():\n    from hvdspark import train"),
        ("hvdspark.launch.rank", "from hvdspark.train.loop import train"),
        ("hvdspark.store", "if TYPE_CHECKING:\n    from hvdspark.data import plan"),
        ("hvdspark.train.loop", "from pyspark import ml"),
        ("hvdspark.train.loop", "from pyspark.ml.param import Param"),
        ("hvdspark.score", "import horovod.torch as hvd"),
        ("hvdspark.launch.rank", "importlib.import_module('petastorm.reader')"),
        ("hvdspark.data.feed.plan", "from fsspec.core import url_to_fs"),
        ("hvdspark.artifact.weights", "import pyarrow"),
        ("hvdspark.cli", "import estimators"),
        ("hvdspark.train.loop", "from hvdspark.somewhere_new import x"),
        ("hvdspark", "from hvdspark.train import loop"),
        ("hvdspark.embedding.plan.groups", "from hvdspark.embedding.exchange.trained import GroupExchange"),
        ("hvdspark.embedding.ids.keys", "from hvdspark.embedding.plan import placement"),
        ("hvdspark.embedding.rows.shard", "from hvdspark.embedding import ShardedEmbeddingCollection"),
        ("hvdspark.data.dataset.cache", "def f():\n    import hvdspark.data.feed.plan"),
    ],
)
def test_the_rules_catch(importer: str, source: str) -> None:
    assert any(forbidden_import(importer, target) or confined(importer, target) for target in imported(source))


def test_every_part_that_has_a_place_is_there() -> None:
    for package, numbers in LAYERS.items():
        parts = {module.part_of(package) for module in MODULES.values() if module.name.startswith(f"{package}.")}
        assert set(numbers) <= parts, f"docs/layers.md has parts of {package} that are not there"


def test_relative_imports_are_caught() -> None:
    with pytest.raises(AssertionError, match="relative import"):
        list(imported("from . import errors"))


def test_no_circles() -> None:
    assert circles(MODULES) == []


def test_private_names_stay_at_home() -> None:
    found: dict[str, list[str]] = {}
    for module in MODULES.values():
        for use in uses_of_private_names(module, MODULES):
            if use.rpartition(".")[2] not in OF_OTHER_LIBRARIES:
                found.setdefault(module.name, []).append(use)
    assert not found


# By which classic pyspark leads to the JVM. docs/connect.md says what it is asked for.
OF_THE_JVM = {
    *("sparkContext", "rdd", "py4j", "SparkContext", "JavaWrapper"),
    *("_jvm", "_jdf", "_jsc", "_sc", "_jc", "_jsparkSession", "_gateway", "_active_spark_context", "_jbroadcast"),
}
ASKS_THE_JVM = {f"hvdspark.session.{name}" for name in ("classic", "counted", "plans", "unchanged")}


def names_of_the_jvm(module: Module) -> set[str]:
    found = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {part for alias in node.names for part in alias.name.split(".")}
            found |= set((getattr(node, "module", None) or "").split("."))
    return found & OF_THE_JVM


def test_one_part_alone_asks_the_jvm() -> None:
    found = {name: names for name, module in MODULES.items() if (names := names_of_the_jvm(module))}
    assert found.keys() == ASKS_THE_JVM, "a Connect client has no JVM: ask hvdspark.session (docs/connect.md)"


def made_of(folder: Path, files: Mapping[str, str]) -> dict[str, Module]:
    """Modules of these texts, by name."""
    made = {}
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.write_text(text)
        made[name] = Module(name, path)
    return made


def test_circles_and_private_names_are_caught(tmp_path: Path) -> None:
    made = made_of(
        tmp_path,
        {
            "hvdspark.a": "from hvdspark.b import f\nclass A:\n    def f(self):\n        self._x = 1\n_y = 1",
            "hvdspark.b": "def f():\n    import hvdspark.c",
            "hvdspark.c": "from hvdspark.a import _y\nimport hvdspark.a as a\na.A()._x",
            "hvdspark.d": "import hvdspark.a",
        },
    )
    assert {name for name, *_ in circles(made)} == {"hvdspark.a", "hvdspark.b", "hvdspark.c"}
    assert list(uses_of_private_names(made["hvdspark.c"], made)) == ["line 1: _y", "line 3: a.A()._x"]
    assert not list(uses_of_private_names(made["hvdspark.a"], made))


def test_no_name_without_a_meaning() -> None:
    files = sources("hvdspark", "estimators", "tests", "examples", "benchmarks")
    names = {part for path in files for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & MEANINGLESS_NAMES


def test_files_stay_small() -> None:
    long = {name for name, module in MODULES.items() if len(module.text.splitlines()) > MAX_LINES}
    assert not long, f"over {MAX_LINES} lines; which part is missing?"
    others = {str(path.relative_to(ROOT)): path.read_text() for path in sources("tests", "examples", "benchmarks")}
    too_long = [name for name, text in others.items() if len(text.splitlines()) > MAX_LINES_ELSEWHERE]
    assert not too_long, f"over {MAX_LINES_ELSEWHERE} lines; which part is missing? {too_long}"


def test_functions_stay_small() -> None:
    long = {
        (module.name, name)
        for module in MODULES.values()
        for name, lines in functions(module)
        if lines > MAX_FUNCTION_LINES
    }
    assert not long, f"over {MAX_FUNCTION_LINES} lines"


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


@pytest.mark.parametrize(
    "unpacked",
    [pytest.param("from git", marks=pytest.mark.slow), "from a ZIP archive, without the link", "from one, as a text"],
)
def test_wheel(tmp_path: Path, unpacked: str) -> None:
    # The kernels are compiled once. Without a compiler, nothing but they is missing.
    compilers = {} if unpacked == "from git" else {"CC": "false", "CXX": "false"}
    # From a copy: setuptools builds inside the source tree, and would pack what an older build left there.
    tree = tmp_path / "tree"
    unwanted = shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=unwanted)
    if unpacked != "from git":
        (tree / "hvdspark" / "estimators").unlink()
    if unpacked == "from one, as a text":
        (tree / "hvdspark" / "estimators").write_text("../estimators")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(tree)], check=True, env={**os.environ, **compilers})
    (wheel,) = tmp_path.glob("hvdspark-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {name.split("/")[0] for name in names} == {"hvdspark", wheel.name.split("-py3")[0] + ".dist-info"}
    expected = {str(path.relative_to(ROOT)) for path in sources("hvdspark")}
    expected |= {f"hvdspark/{path.relative_to(ROOT)}" for path in sources("estimators")}
    assert {name for name in names if name.endswith(".py")} == expected
    assert "hvdspark/py.typed" in names
    assert ("hvdspark/embedding/kernels/compiled.so" in names) == (not compilers)
    assert "hvdspark = hvdspark.cli:main" in entry_points


def run_python(code: str) -> None:
    lines = [line.strip() for line in code.strip().splitlines()]
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
