"""Loading a pickle runs whatever code it names. Each place that does is listed here, with where its bytes are from."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.source_tree import modules

# Calls that run code which bytes name, by module and function, and who has made these bytes.
ALLOWED = {
    ("hvdspark.launch.rank", "_unpickle"): "the program, from the driver, over the rank's own pipe",
    ("hvdspark.launch.generation", "_unpickle"): "a result, from a rank, over Spark's job or a keeper's pipe",
    ("hvdspark.launch.blame", "first_failure"): "an error of a rank, from the same places",
    ("hvdspark.score", "load_module"): "the skeleton, from the driver, in the closure of Spark's plan",
    ("hvdspark.train.on_rank", "train_on_rank"): "the program, from the driver, in the arguments of a rank",
    ("hvdspark.train.pickling", "copy"): "what this process has pickled itself",
    ("hvdspark.train.saving", "_expected"): "what this process has pickled itself",
    ("hvdspark.train.pickling", "_Unpickler"): "see CALLERS",
}
# Who calls `unpickled`.
CALLERS = {
    "hvdspark.estimators.embeddings": "the skeleton that this process has pickled",
    "hvdspark.estimators.fitted": "the skeleton that this process has pickled",
    "hvdspark.estimators.persistence": "a saved object, after the opt-in of who loads it",
}
# What unpickles when it is called, as the last part of its name: of pickle, cloudpickle, torch, joblib, numpy, pandas.
_LOADERS = {"load", "loads", "Unpickler", "read_pickle", "load_pickle", "unpickle"}
_OWNERS = {"pickle", "cloudpickle", "dill", "joblib", "torch", "np", "numpy", "pd", "pandas", "marshal", "shelve"}
_RUN = {"eval", "exec", "compile", "__import__"}


def loads_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(function, what it calls) of each call that may run code which data names."""

    def look(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef) else function
            if isinstance(child, ast.Call) and (name := _risky(child.func, child)):
                yield inside, name
            if isinstance(child, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in child.bases):
                yield child.name, "Unpickler"
            yield from look(child, inside)

    yield from look(tree, "")


def _risky(called: ast.expr, call: ast.Call) -> str:
    name = ast.unparse(called)
    if isinstance(called, ast.Name):
        return name if called.id in _RUN or called.id in ("loads", "Unpickler") else ""
    if any(keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in call.keywords):
        return name
    parts = name.split(".")
    return name if parts[-1] in _LOADERS and parts[0] in _OWNERS else ""


def test_who_loads_pickles_is_listed() -> None:
    found = {(name, function) for name, module in modules().items() for function, _ in loads_of(module.tree)}
    assert found == ALLOWED.keys(), "bytes of a store are never unpickled without an opt-in (SECURITY.md)"


def test_who_reads_saved_pickles_is_listed() -> None:
    callers = {
        name
        for name, module in modules().items()
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "unpickled"
    }
    assert callers == CALLERS.keys()


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f)",
        "def f():\n    return pickle.loads(x)",
        "np.load(path, allow_pickle=True)",
        "cloudpickle.load(f)",
        "joblib.load(f)",
        "pd.read_pickle(f)",
        "class U(pickle.Unpickler):\n    pass",
        "eval(text)",
        "from pickle import loads\nloads(x)",
    ],
)
def test_the_rule_catches(source: str) -> None:
    assert list(loads_of(ast.parse(source)))


def test_the_rule_lets_pass() -> None:
    assert not list(loads_of(ast.parse("json.loads(x)\nmodule.eval()\nnp.frombuffer(x)\nre.compile(y)")))
