"""Repeats the proof without PyTorch: an engine replays its recorded reference, and is judged by the differences."""
