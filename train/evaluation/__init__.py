"""Generates answers to held-out problems, grades them, and compares models with confidence intervals."""
