"""The targets, by the kind of bytes. A process imports only the module that has its target."""
