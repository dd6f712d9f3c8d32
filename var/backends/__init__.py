"""AIM in JAX (flax nnx) and MLX, with the weights of the one in PyTorch."""
