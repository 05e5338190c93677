"""Decodes requests in pure numpy: the decode loop, block layout, gate, sampling, and the state of each request."""
