"""What a fetch writes to."""
