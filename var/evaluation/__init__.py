"""Measures that people can trust: samples, scores, likelihood, scaling laws; each says how it was made."""
