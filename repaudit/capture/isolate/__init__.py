"""Forwarding a model so that its training cannot tell."""
