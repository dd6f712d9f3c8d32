"""Images and tokens for training and evaluation: sources, datasets, the token cache."""
