"""`hvdspark doctor`: what works here, what does not, and how to repair it."""

from hvdspark.doctor.facts import Facts, HorovodFacts, SessionFacts, WorkerFacts, gather
from hvdspark.doctor.report import Row, as_json, diagnose, healthy, table

__all__ = [
    "Facts",
    "HorovodFacts",
    "Row",
    "SessionFacts",
    "WorkerFacts",
    "as_json",
    "diagnose",
    "gather",
    "healthy",
    "table",
]
