"""One seed for a whole request, and from it one for every thing that draws."""

import hashlib


def seed_of(seed: int, name: str) -> int:
    """A seed of its own for everything with a name, so that neither order nor resumption changes what is drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]) >> 1  # torch takes 63 bits
