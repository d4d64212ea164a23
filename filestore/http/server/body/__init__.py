"""Request and response bodies: read and written beside aiohttp, in threads."""
