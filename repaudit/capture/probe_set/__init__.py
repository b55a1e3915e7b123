"""The fixed inputs that are forwarded at every audit."""
