"""Samples which tokens are masked in training, and the states of answers that a model is trained on."""
