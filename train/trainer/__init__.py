"""The training loop that all commands share, and how a stopped run goes on."""
