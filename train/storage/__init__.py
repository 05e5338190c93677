"""Checkpoints on disk, read without running code from them."""
