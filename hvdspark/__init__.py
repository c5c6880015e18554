"""hvdspark: deep-learning recommendation models on the Spark cluster you already have."""
