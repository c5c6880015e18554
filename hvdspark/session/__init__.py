"""What hvdspark asks of a Spark session beyond its DataFrame API, of a classic one and of a Connect client.

The only part of hvdspark that reaches into the JVM: `classic.py`, and what it is made of: `unchanged.py` and `plans.py`
for what is read off a plan, `counted.py` for what is counted while rows are written.
`docs/connect.md` lists what for, and what a Connect client, which has no JVM, does instead.
"""

from hvdspark.session.chosen import active_session, is_connect, session_of
from hvdspark.session.protocol import Session
from hvdspark.session.unchanged import Unproven

__all__ = ["Session", "Unproven", "active_session", "is_connect", "session_of"]
