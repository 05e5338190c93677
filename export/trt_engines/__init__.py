"""TensorRT engines: planned, traced, built and added to a bundle."""
