"""Inpainting, outpainting and super-resolution: image masks, windows and the edits."""
