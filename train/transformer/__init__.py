"""Defines the model, a compact transformer with prefix masks."""
