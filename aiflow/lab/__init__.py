"""An emulated cluster on one machine, and the published experiments on it."""
