"""Embedding tables larger than one worker: sharding (pure plan), exchange (alltoall), table (local rows), module."""
