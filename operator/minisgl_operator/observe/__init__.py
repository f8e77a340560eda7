"""What the cluster holds becomes conditions, a status and the way to roll out: pure functions on plain data."""
