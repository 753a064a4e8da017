"""Ray for the length of a job: a cluster or this machine, and what is asked of its nodes."""
