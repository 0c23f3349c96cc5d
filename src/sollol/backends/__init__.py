"""What a node is asked and what its answers mean, by kind of server. Pure but for the probe."""
