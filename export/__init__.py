"""Exports a checkpoint to a bundle that the runtime decodes with, and proves it against PyTorch on the way."""
