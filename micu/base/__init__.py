"""What everything stands on: errors, files, devices, signals and exit codes."""
