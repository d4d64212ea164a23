"""The server: a repository across HTTP, for our own clients, the Pipeline SDK's, and anyone's."""

from filestore.http.server.serve import serve

__all__ = ["serve"]
