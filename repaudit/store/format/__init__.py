"""The on-disk format: layout, documents, encoding, and checks against the schemas."""
