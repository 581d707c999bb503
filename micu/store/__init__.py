"""Manifests, shards and feature sets: the contract between extraction and training."""
