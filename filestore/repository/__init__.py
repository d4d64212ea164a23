"""Repositories: the protocol, the local implementation, and its stores and indexes."""
