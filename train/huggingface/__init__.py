"""Hugging Face directories and PEFT adapters, read from data alone and written."""
