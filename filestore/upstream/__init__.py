"""Fetch what is not here from another Hub, once, and serve it: `docs/hub-upstream.md`."""
