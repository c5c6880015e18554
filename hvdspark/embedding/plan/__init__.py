"""Which rank owns what. Pure."""
