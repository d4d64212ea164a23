"""Download files from servers of other parties."""
