"""Sample data for the demo and the experiments."""
