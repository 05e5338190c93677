"""Fills forms by decisions: words are pinned on the masked blocks, values are chosen by their log-probabilities."""
