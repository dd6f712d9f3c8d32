"""Time and memory that a recipe takes, for the dry run."""
