"""The way of a clip through an extraction: planned, decoded ahead, encoded, written."""
