"""Chunk stores keep frames and manifests by digest. `protocol` holds the contract; each backend is a module."""
