"""Peers: caches on other machines that give frames, so that few of them leave the server."""
