"""The published experiments: their data sets, protocols and figures."""
