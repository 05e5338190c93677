"""The distillation methods and the autoregressive baseline."""
