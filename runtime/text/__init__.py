"""Converts text to token ids and back, renders chat templates, and shows answers in a terminal."""
