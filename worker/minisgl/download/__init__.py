"""Brings a model's files from the Hugging Face Hub into a plain directory."""
