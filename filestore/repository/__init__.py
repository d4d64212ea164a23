"""Repositories: the protocol, the local implementation, and the stores and indexes below it."""
