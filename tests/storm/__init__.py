"""A storm: many readers want the same file at the same moment. The client is real, the network and the clock are simulated."""
