"""Many plans as one: points, workers on many machines, and one table."""
