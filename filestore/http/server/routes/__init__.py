"""Answer the requests of the HTTP API, with one module for each part of it."""
