"""Which images there are, and how they are fetched: listing, lists, locations that may be opened, fetching."""
