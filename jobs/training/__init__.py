"""One training: data, the loop of a worker, checkpoints, the bundle, and the page of what it learned."""
