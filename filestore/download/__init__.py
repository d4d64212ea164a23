"""Downloads from third-party servers."""
