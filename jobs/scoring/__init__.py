"""One run of scoring: manifest, stages, decisions, and the commit that publishes it."""
