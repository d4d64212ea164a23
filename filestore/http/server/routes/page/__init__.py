"""The page of a server: HTML for browsers."""
