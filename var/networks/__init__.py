"""Frozen networks that others are trained or measured with."""
