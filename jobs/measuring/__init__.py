"""Runs measured against labels and against each other, and where their evidence lies."""
