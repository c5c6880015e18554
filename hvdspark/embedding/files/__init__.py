"""Rows of sharded tables on disk, and tables that are read from there."""
