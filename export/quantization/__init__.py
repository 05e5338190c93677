"""Weights and activations in few bits, for ONNX Runtime and for TensorRT."""
