"""A small registry of models, from which the nodes of one network pull what one of them has."""
