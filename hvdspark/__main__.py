"""`python -m hvdspark`."""

from hvdspark.cli import main

raise SystemExit(main())
