"""The entry points: the only place that imports Ray, reads the environment or looks at the clock."""

from fcdd.io import memory

memory.keep()  # first of all: numpy and others start threads when they are imported
