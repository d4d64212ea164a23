"""Content-addressed file store and transfer service for model weights."""
