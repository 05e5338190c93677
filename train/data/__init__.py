"""Encodes prompts, makes batches, and stores trajectories."""
