"""Figures of an analysis with matplotlib: every function takes an ``ax``, draws on it and returns it.

Each takes the group of the results that it draws, at one scale, or all results, of which it draws the first scale.
"""

from repaudit.plots.curves import (
    plot_approach,
    plot_comparison,
    plot_diagnostics,
    plot_groups,
    plot_spread,
)
from repaudit.plots.embeddings import plot_embedding, plot_frame, plot_together, plot_trajectories, plot_units
from repaudit.plots.maps import plot_similarity
from repaudit.plots.pairs import plot_pairs
from repaudit.plots.points import path
from repaudit.plots.saving import save_figures
from repaudit.plots.settling import plot_settling

__all__ = [
    "path",
    "plot_approach",
    "plot_comparison",
    "plot_diagnostics",
    "plot_embedding",
    "plot_frame",
    "plot_groups",
    "plot_pairs",
    "plot_settling",
    "plot_similarity",
    "plot_spread",
    "plot_together",
    "plot_trajectories",
    "plot_units",
    "save_figures",
]
