"""What decoding costs: measured on this machine, and counted for others."""
