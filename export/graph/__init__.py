"""The step graph: traced from a checkpoint, written in a dialect."""
