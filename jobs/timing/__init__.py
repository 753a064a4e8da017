"""What takes how long, and how far it is."""
