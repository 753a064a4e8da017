"""The part of the library that touches files, stores, sockets, processes, the environment or the clock."""
