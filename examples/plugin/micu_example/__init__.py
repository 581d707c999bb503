"""Backbones, a data set, a loss and a task, as another package adds them to micu."""
