"""Questions with measured answers; see README.md."""
