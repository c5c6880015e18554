"""Ids out, rows back, gradients out: what ranks exchange about rows, and rows as outputs of features."""
