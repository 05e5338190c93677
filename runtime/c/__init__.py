"""Holds the C library's sources: its header, its C code, and the Python that it embeds."""
