"""Repositories store files. This package has their protocol and the local implementation, with stores and indexes."""
