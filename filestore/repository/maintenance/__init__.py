"""Maintenance of repositories: work on stored content that no push and no fetch does.

Its verbs use the protocols of store and index only, so they work for every backend.
"""
