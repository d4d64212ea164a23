"""The formats of stored and sent bytes: frames, chunk boundaries, zip files. This package does no I/O."""
