"""Reads checkpoints from disk without running code from them, and writes them."""
