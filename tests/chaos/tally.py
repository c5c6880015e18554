"""What logs of the runner say, as the table of docs/reliability.md.

python -m tests.chaos.tally FILE [FILE ...]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD = """| What | Faults | Recovered | p50 s | p95 s | Longest s | To the next generation, longest s |
|---|---|---|---|---|---|---|"""


def percentile(values: Sequence[float], percent: int) -> float:
    """0.0 of no values."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def rows(lines: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The faults that struck: all, those that nobody has to be missed for before they are noticed, and each kind."""
    struck = [blow for line in lines for blow in line["blows"] if blow["generation"] >= 0]
    kinds = sorted({(blow["fault"]["victim"], blow["fault"]["signal"]) for blow in struck})
    of_kind = {kind: [blow for blow in struck if _kind(blow) == kind] for kind in kinds}
    return [
        ("all", struck),
        ("all but STOP", [blow for blow in struck if blow["fault"]["signal"] != "STOP"]),
        *((f"{victim}, {signal}", blows) for (victim, signal), blows in of_kind.items()),
        ("with a damaged file", [blow for blow in struck if blow["damaged"]]),
    ]


def report(lines: Sequence[dict[str, Any]]) -> str:
    """A table, and a line above it of what came of the runs."""
    outcomes = Counter(line["outcome"] for line in lines)
    bad = [line["seed"] for line in lines if line["outcome"] not in ("ok", "stopped")]
    seconds = sum(line["seconds"] for line in lines)
    head = f"{len(lines)} runs in {seconds:.0f} s: {dict(outcomes)}; not as they must be: {bad or 'none'}"
    return "\n".join([head, HEAD, *(_row(name, blows) for name, blows in rows(lines))])


def _row(name: str, blows: Sequence[dict[str, Any]]) -> str:
    recovered = [blow["recovered_s"] for blow in blows if blow["recovered_s"] is not None]
    p50, p95 = percentile(recovered, 50), percentile(recovered, 95)
    longest = max(recovered, default=0.0)
    again = max((blow.get("again_s") or 0.0 for blow in blows), default=0.0)
    return f"| {name} | {len(blows)} | {len(recovered)} | {p50:.2f} | {p95:.2f} | {longest:.2f} | {again:.2f} |"


def _kind(blow: dict[str, Any]) -> tuple[str, str]:
    return blow["fault"]["victim"], blow["fault"]["signal"]


if __name__ == "__main__":
    print(report([json.loads(line) for name in sys.argv[1:] for line in Path(name).read_text().splitlines()]))
