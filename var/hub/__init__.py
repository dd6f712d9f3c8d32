"""Presets, model folders, and released weights: download and conversion."""
