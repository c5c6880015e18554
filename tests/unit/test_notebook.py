"""HTML that notebooks show: well formed, escaped, and numbers as people read them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from hvdspark import notebook


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_numbers_stand_at_the_right_and_text_is_escaped() -> None:
    found = parsed(
        notebook.table(
            ("<name>", "rows", "size"), [("a & b", 12345, "2 MiB"), ("c", None, "")], right=("size",), strong=0
        )
    )
    head = ["".join(cell.itertext()) for cell in found.iter("th")]
    cells = [(cell.text or "", "text-align:right" in cell.attrib["style"]) for cell in found.iter("td")]
    assert head == ["<name>", "rows", "size"]
    assert cells[:3] == [("a & b", False), ("12,345", True), ("2 MiB", True)]
    assert cells[3:] == [("c", False), ("", True), ("", True)], "a column's cells stand where its numbers do"
    assert ["bold" in row.attrib["style"] for row in found.findall("tbody/tr")] == [True, False]


def test_a_table_without_rows_is_its_headings() -> None:
    assert [cell.text for cell in parsed(notebook.table(("a", "b"), [])).iter("th")] == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (0.123456789, "0.12346"),
        (25806.4, "25,806"),
        (1e-7, "1e-07"),
        (math.nan, "nan"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert notebook.number(value) == text


def test_curves_have_a_line_for_each_name_and_round_marks() -> None:
    found = parsed(notebook.curves([0, 1, 2], {"train<loss": [0.93, 0.5, 0.31], "gap": [0.8, math.nan, 0.4]}, marked=2))
    assert [part.tail for part in found.iter("span") if part.tail] == [" train<loss", " gap"]
    assert len([path for path in found.iter("path") if path.get("stroke-width")]) == 2
    texts = [part.text for part in found.iter("text")]
    assert texts[:5] == ["0.2", "0.4", "0.6", "0.8", "1"]
    assert texts[5:] == ["0", "1", "2", "epoch"]
    assert len(list(found.iter("circle"))) == 5, "what is not finite has no point"


@pytest.mark.parametrize("values", [[], [0.5], [math.nan, math.inf]])
def test_nothing_is_drawn_of_nothing(values: list[float]) -> None:
    assert notebook.curves(list(range(len(values))), {"loss": values}, 0) == ""


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.0, 0.0], [-3.0, -2.0], [1e-9, 2e-9], [0.0, 1e12]])
def test_every_value_lies_between_the_marks(values: list[float]) -> None:
    found = parsed(notebook.curves([3, 4], {"loss": values}, 4))
    marks = [float(part.text or "") for part in found.iter("text") if part.get("text-anchor") == "end"]
    assert marks == sorted(marks)
    assert 2 <= len(marks) <= 7
    heights = [float(dot.attrib["cy"]) for dot in found.iter("circle")]
    assert all(12 <= height <= 166 for height in heights)


def test_a_loss_that_is_a_metric_too_is_shown_once() -> None:
    lines = {"train_loss": [0.5], "val_loss": [0.5, 0.4], "val_logloss": [0.5, 0.4000001], "val_auc": [0.5, 0.6]}
    assert list(notebook.once(lines)) == ["train_loss", "val_loss", "val_auc"]
    assert list(notebook.once({"train_loss": [0.5]})) == ["train_loss"]
