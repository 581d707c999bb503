"""Media files: found, opened locked down, decoded to the instant, in killable processes."""
