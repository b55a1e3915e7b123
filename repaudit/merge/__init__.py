"""Merging diffusion operators of several models."""
