"""Measures what decoding costs on this machine, and computes what it costs on others."""
