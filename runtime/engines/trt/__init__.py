"""Runs step graphs in TensorRT, standard and for RTX, on one NVIDIA GPU."""
