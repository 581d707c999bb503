"""Settings of a run: their sections, the named presets, and changes typed by hand."""
