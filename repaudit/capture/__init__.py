"""Recording activations in the training process without touching the training."""
