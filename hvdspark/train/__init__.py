"""The training loop and everything it needs on a rank."""
