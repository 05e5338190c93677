"""Computes the losses of the distillation methods and of the autoregressive baseline."""
