"""Read request bodies and write response bodies in threads, on the sockets that aiohttp manages."""
