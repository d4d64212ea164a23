"""What bytes look like: frames, chunk boundaries, zip files. No I/O."""
