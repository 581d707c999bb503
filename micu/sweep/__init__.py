"""Sweeps: the runs that a grid of settings and seeds makes, and the one table that they end in."""
