"""The C library: its header, the C that is compiled, and the Python that runs behind it."""
