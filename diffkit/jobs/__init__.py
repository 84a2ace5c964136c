"""Picture commands: one file each, and the way from a command to files."""
