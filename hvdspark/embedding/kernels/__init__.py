"""Loops over ids and rows: compiled ones, each beside its reference in numpy and torch, which gives the same bits."""
