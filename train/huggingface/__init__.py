"""Reads and writes Hugging Face directories and PEFT adapters; runs no code from them."""
