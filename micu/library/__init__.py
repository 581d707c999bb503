"""The Python face: clips, feature sets and models as objects."""
