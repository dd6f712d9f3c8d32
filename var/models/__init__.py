"""The networks: VAR, AIM and what they are made of."""
