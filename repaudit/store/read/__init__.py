"""Reading: lazy trees, names as they were given, steps checked against their checksums."""
