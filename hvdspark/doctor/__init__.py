"""`hvdspark doctor`: what works here, what does not, and how to repair it."""

from hvdspark.doctor.facts import gather
from hvdspark.doctor.report import as_json, diagnose, healthy, table

__all__ = ["as_json", "diagnose", "gather", "healthy", "table"]
