"""Traces the step graph from a checkpoint and writes it in a dialect."""
