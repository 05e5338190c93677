"""Plans, traces and builds TensorRT engines, and adds them to a bundle."""
