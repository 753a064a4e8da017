"""Ray for the length of a job: a cluster or this machine, and the resources that are requested of its nodes."""
