"""Evaluation: sample sets, metrics on images, tokenizer reconstruction, token likelihood, scaling laws."""
