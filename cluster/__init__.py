"""What starts the system: embedded local services and the demonstration. Never imported by fcdd or schemas."""
