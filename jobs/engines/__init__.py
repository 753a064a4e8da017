"""What drives shards through the stages of scoring: the threads of one process, or Ray."""
