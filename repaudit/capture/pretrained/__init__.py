"""Recording models that are not in training."""
