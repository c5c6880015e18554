"""What is in the store and what it means: schema, writing, footers, reuse."""
