"""One training: data, the loop of a worker, checkpoints, calibration, and the bundle."""
