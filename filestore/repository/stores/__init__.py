"""Chunk stores: frames and manifests by digest. The contract is in `protocol`, each backend in a module of its own."""
