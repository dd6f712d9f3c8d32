"""Metrics on sets of images: extractors, references, scores."""
