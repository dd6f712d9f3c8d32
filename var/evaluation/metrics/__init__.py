"""Metrics on sets of images: feature extractors, references, scores."""
