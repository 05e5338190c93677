"""Contains the engines that run a step graph: ONNX Runtime and TensorRT."""
