"""The entry points: the only place that imports Ray, reads the environment or looks at the clock."""
