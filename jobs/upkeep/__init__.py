"""What keeps a results location in order: states of runs, and what nothing names any more."""
