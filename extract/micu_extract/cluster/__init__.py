"""One extraction on many machines: shares, Slurm, Dask."""
