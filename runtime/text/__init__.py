"""Text to token ids and back, and what a terminal shows of an answer."""
