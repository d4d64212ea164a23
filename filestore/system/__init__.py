"""Use the operating system: threads, buffers, files, locks, metrics. The rest of the library calls this package."""
