"""Zip files: the one that stands for a directory, and how any zip file is read. No I/O.

Normative text: `docs/format.md`, section Directories.
"""
