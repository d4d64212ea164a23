"""Archives: the zip file that stands for a directory, and how any zip file is read. Without I/O.

Normative text: `docs/format.md`, section Directories.
"""
