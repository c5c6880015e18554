"""One rank's rows of sharded tables, and of those that every rank has whole."""
