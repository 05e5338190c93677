"""Trains models in a loop that all commands share, and resumes stopped runs."""
