"""The objective in other trainers: Lightning and transformers."""
