"""From feature sets to aligned samples and batches."""
