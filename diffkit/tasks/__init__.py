"""What the commands do, each a short composition over the engine; no printing, no files, no command line."""
