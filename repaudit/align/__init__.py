"""Teaching: a student is fine-tuned to the merged operator, the coordinates or the features of other models."""
