"""Quantizes weights and activations, for ONNX Runtime and for TensorRT."""
