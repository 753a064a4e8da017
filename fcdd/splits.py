"""Splits that do not change when images are added: by a hash of the key, never by position."""

import hashlib


def is_held_out(key: str, share: float) -> bool:
    """Whether the image of this key belongs to the held-out `share` (0..1) of its collection."""
    digest = hashlib.sha256(key.strip("/").encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
