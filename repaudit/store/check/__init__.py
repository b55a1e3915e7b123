"""Finding what is wrong with a store, and repairing it."""
