"""The training loop that all commands share, and how a stopped run is resumed."""
