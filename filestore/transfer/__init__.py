"""Push and fetch of files and directories."""
