"""Threads, buffers, files, locks and metrics: what the rest of the library needs of the operating system."""
