"""Serve a repository over HTTP to filestore clients, to the Pipeline SDK and to any other HTTP client."""

from filestore.http.server.serve import serve

__all__ = ["serve"]
