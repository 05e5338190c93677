"""From a checkpoint to a bundle that the runtime decodes with, proved against PyTorch on the way."""
