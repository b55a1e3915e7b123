"""The operator of fixed perplexity from its definition: float64, a bracketing root finder, one row at a time."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.spatial.distance import cdist

SAME = 1e-9
"""Relative difference up to which two float64 distances tie."""


def probabilities(X, perplexity, neighbors=None):
    X = np.asarray(X, dtype=np.float64)
    squared = cdist(X, X) ** 2
    size = np.sqrt(((X - X.mean(0)) ** 2).sum(1).mean())
    count = len(X)
    k = min(count - 1, neighbors or int(3 * perplexity))
    p = np.zeros((count, count))
    for i in range(count):
        others = np.delete(np.arange(count), i)
        d = squared[i, others]
        inside = d <= np.sort(d)[k - 1] * (1 + SAME)
        p[i, others[inside]] = row(d[inside], perplexity, (1e-6 * (size or 1.0)) ** -2)
    return p


def row(squared, perplexity, sharpest):
    gap = squared - squared.min()
    gap[gap <= SAME * squared.min()] = 0
    ties = (gap == 0).sum()
    if len(gap) <= perplexity or ties == len(gap):
        return np.full(len(gap), 1 / len(gap))
    if ties >= perplexity:
        return (gap == 0) / ties

    def weights(log_b):
        return np.exp(-np.exp(log_b) * gap / gap.std())

    def excess(log_b):
        w = weights(log_b) / weights(log_b).sum()
        return -(w[w > 0] * np.log(w[w > 0])).sum() - np.log(perplexity)

    root = brentq(excess, -20, 60, xtol=1e-13)
    root = min(root, np.log(sharpest * gap.std()))
    return weights(root) / weights(root).sum()


def operator(X, perplexity=15, alpha=1.0, neighbors=None):
    p = probabilities(X, perplexity, neighbors)
    K = (p + p.T) / 2
    q = K.sum(1)
    K = K / np.outer(q, q) ** alpha
    return K / K.sum(1, keepdims=True), K.sum(1)
