"""What the documents say is there, is there."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from hvdspark import versions
from tests.source_tree import ROOT, sources

ADDED_BY_TOURS = {"hvdspark/models/nfm.py", "hvdspark/collectives/folder.py"}
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for file, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?[^)]*\)", document.read_text()):
        target = document.parent / file if file else document
        if "://" not in file and (not target.exists() or (anchor and anchor not in anchors(target.read_text()))):
            broken.append(f"{file}#{anchor}")
    assert not broken


def anchors(text: str) -> list[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]


def test_the_index_of_decisions_has_each_under_its_title() -> None:
    folder = ROOT / "docs" / "decisions"
    titles = {path.name: path.read_text().splitlines()[0] for path in sorted(folder.glob("0*.md"))}
    listed = re.findall(r"^- \[(\d{4})\]\((\S+)\): (.+)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert {file: f"# {number}: {title}" for number, file, title in listed} == titles


@pytest.mark.parametrize(
    "message",
    [
        "Spark starts its Python workers with another Python, which lacks",
        "the function or the module to train cannot be imported on the executors",
        "ranks have started after",
        "other jobs may hold the slots",
        "the module failed on arrays of different lengths",
        "labels of {} must be whole numbers",
        "the store cannot be written",
        "a Horovod with NCCL cannot be built here",
        "the module failed on the first rows",
        ", and there is no {}/bin/java",
        "the fitted model can be used, but save will refuse it",
        "cannot import a part of the saved model that this session does not trust",
        "training changed what is no weight of the module",
    ],
)
def test_errors_that_need_more_than_a_hint_are_explained_in_their_words(message: str) -> None:
    pattern = re.escape(message).replace(r"\{\}", r"\S+?")
    sources = "\n".join(path.read_text() for path in sorted((ROOT / "hvdspark").rglob("*.py")))
    assert re.search(pattern.replace(r"/bin/java", ""), sources)
    assert re.search(pattern, (ROOT / "docs" / "troubleshooting.md").read_text())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_are_named_exist(document: Path) -> None:
    """`file.py::test`, and `::test` of the file that was named last."""
    source, missing = "", []
    for file, name in re.findall(r"`((?:[\w/]+/)?test_\w+\.py)?(?:::(\w+))?`", document.read_text()):
        if file:
            found = [path for path in (ROOT / "tests").rglob("test_*.py") if path.as_posix().endswith(f"/{file}")]
            source = found[0].read_text() if len(found) == 1 else ""
        if (file and not source) or (name and f"def {name}(" not in source):
            missing.append(f"{file}::{name}")
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_modules_that_are_named_exist(document: Path) -> None:
    files = [
        f"/{path.relative_to(ROOT)}" for path in sources("hvdspark", "estimators", "tests", "examples", "benchmarks")
    ]
    named = set(re.findall(r"`([\w./-]+/[\w.-]+\.py)", document.read_text())) - ADDED_BY_TOURS
    assert not [name for name in named if not any(file.endswith(f"/{name}") for file in files)]
    for name in set(re.findall(r"(?<![\w./-])(hvdspark(?:\.\w+)+)", document.read_text())):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", document.read_text(), re.MULTILINE)
    assert {target for command in commands for target in command.split()} <= targets


def test_the_support_matrix_is_the_one_that_is_checked() -> None:
    text = (ROOT / "README.md").read_text()
    supported = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE))
    rows = {"Java": "Java", "Python": "Python", "Spark": "pyspark", "torch": "torch", "Horovod": "horovod"}
    for name, key in {**rows, "Petastorm": "petastorm"}.items():
        requirement = versions.REQUIREMENTS[key]
        for version in re.findall(r"[\d.]+", supported[name]):
            assert versions.problem(requirement.name, version) is None, f"{name} {version}"
        assert requirement.minimum in supported[name]
