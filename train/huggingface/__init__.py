"""Reads Hugging Face directories and PEFT adapters, from data alone, and writes them."""
