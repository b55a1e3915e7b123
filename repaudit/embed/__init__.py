"""Pictures: PHATE of samples, trajectories and units, and metric MDS."""
