"""Sets of generated images: generation, rejection, files."""
