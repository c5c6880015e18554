"""What a trained model is on disk, and how a row goes through it."""
