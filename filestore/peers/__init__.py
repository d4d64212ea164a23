"""Peers: caches of other machines that give each other frames, so that an origin sends each one only a few times."""
