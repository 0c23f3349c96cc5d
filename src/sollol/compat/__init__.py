"""Import paths of older programs: routers, GPU controller, hedging, observer. Top-level modules re-export them."""
