"""Objectives of training, one file a stage; base.py says what a stage is and finds them by their names."""
