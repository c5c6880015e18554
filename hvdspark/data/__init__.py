"""From a DataFrame to batches: schema (pure) -> materialize (Petastorm) -> plan (pure) -> loader."""
