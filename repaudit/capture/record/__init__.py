"""From activations to a store: triggers, sessions, ranks, failures."""
