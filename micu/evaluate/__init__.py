"""What a checkpoint is worth: probes, open-set and codebook tasks, metrics and their report."""
