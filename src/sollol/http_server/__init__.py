"""An HTTP server with bounds, shared by the gateway and the dashboard."""
