"""The model: a compact transformer with prefix masks."""
