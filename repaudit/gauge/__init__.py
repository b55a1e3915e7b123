"""From activations to diffusion operators."""
