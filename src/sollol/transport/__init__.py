"""The only sockets: the HTTP client for nodes, and the parts it shares with the HTTP server."""
