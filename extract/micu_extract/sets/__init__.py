"""Feature sets that are there: what they hold, whether it is right, and how it is mended."""
