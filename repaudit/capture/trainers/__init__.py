"""Callbacks for Lightning and the transformers Trainer."""
