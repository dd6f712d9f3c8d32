"""Speed of the works of a model against what the machine can do."""
