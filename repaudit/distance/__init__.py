"""Distances between samples, exact where they are close."""
