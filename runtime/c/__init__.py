"""The C library: its header, the C that is compiled, and the Python that it embeds."""
