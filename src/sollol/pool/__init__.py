"""The join: pools over the dispatcher."""
