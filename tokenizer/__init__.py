"""Stage 1 of VAR: images <-> token pyramid; the model is in `tokenizer.vqvae`."""
