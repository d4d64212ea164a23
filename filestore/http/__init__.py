"""The way across a network: `server` and `client` meet only in `wire`."""
