"""Distances between operators, spread of models, similarity of activations."""
