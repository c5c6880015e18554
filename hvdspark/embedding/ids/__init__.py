"""64-bit ids as tensors: hashing, distinct ones, jagged features. Knows no table."""
