"""The formats of stored and sent bytes: frames, chunk boundaries, zip files. No I/O."""
