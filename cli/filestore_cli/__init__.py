"""The command line of filestore."""
