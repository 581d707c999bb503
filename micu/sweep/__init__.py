"""Sweeps: the runs that a grid of settings and seeds makes, and how they are done."""
