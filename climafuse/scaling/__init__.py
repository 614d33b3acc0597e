"""Studies: many runs from one file, each in its own process, resumed where they were stopped, compared in one table."""
