"""Training of both stages: recipes, data, schedule, one loop."""
