"""What a recipe takes in time and memory, for the dry run."""
