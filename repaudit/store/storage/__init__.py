"""Where a store's bytes live: atomic puts, exclusive creates, leases; local disks and fsspec URLs."""
