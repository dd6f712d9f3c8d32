"""Scaling laws: runs, fits and figures."""
