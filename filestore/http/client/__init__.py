"""The client of a filestore server."""
