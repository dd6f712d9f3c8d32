"""Sets of generated images: generation, rejection sampling, files."""
