"""Which rows a rank reads when, as tensors: plan (pure), windows, batches."""
