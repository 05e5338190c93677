"""Bundles on disk: the manifest, the files that it names, and what this machine remembers of them."""
