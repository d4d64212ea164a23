"""Make the zip file for a directory, and read any zip file. This package does no I/O.

Normative text: `docs/format.md`, section Directories.
"""
