"""The protocol between machines. The packages `server` and `client` share only the module `wire`."""
