"""Values of raw columns and what they become, the same in the plan of Spark and without Spark.

`tests/fixtures/golden-values.json` has a list of cases for categories, and one for numbers. A case has the `type` of
the column now, the type that it had when the model was `trained` ("" where that is now), its `values` and, for each of
them, the id of 52 bits or the double that it becomes where handleInvalid is "keep".
"""

from __future__ import annotations

import decimal
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ID_BITS = 52
_FILE = Path(__file__).parent / "fixtures" / "golden-values.json"


@dataclass(frozen=True)
class Case:
    type: str
    trained: str
    values: list[Any]
    expected: list[Any]

    def __str__(self) -> str:
        return f"{self.type} trained as {self.trained}" if self.trained else self.type


def cases(what: str) -> list[Case]:
    """Of "categories" or "numbers"."""
    return [
        Case(case["type"], case["trained"], [_value(case["type"], v) for v in case["values"]], case["expected"])
        for case in json.loads(_FILE.read_text())[what]
    ]


def _value(type_name: str, value: Any) -> Any:
    """Decimal numbers are text in JSON."""
    return decimal.Decimal(value) if type_name.startswith("decimal") and value is not None else value
