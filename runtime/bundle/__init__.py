"""Reads and writes bundles: the manifest, the files that it names, and this machine's records of them."""
