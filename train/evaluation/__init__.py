"""Held-out problems generated, graded and compared with their uncertainty."""
