"""Generates answers to held-out problems, grades them, and compares them with their uncertainty."""
