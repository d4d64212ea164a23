"""What a push reads: files, directories, and the cache of earlier pushes."""
