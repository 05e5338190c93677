"""Runs step graphs in ONNX Runtime, on the CPU and on CUDA."""
