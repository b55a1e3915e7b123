"""Writing: the root, one model's record, the commit, the writer's thread."""
