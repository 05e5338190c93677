"""Proves parity with PyTorch: of whole models, of layers, of quantized graphs."""
