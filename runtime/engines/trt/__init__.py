"""TensorRT, standard and for RTX, on one NVIDIA GPU."""
