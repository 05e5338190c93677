"""Prompts, batches and trajectories."""
