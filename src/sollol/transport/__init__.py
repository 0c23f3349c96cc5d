"""The only sockets: the HTTP client for nodes and what it shares with the HTTP server."""
