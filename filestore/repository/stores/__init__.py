"""Chunk stores keep frames and manifests by digest. The module `protocol` says what every store must do."""
