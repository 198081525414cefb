"""Evaluation: how close a model is to its teacher, and how often it answers right."""
