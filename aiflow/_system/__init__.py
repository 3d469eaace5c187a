"""The operating system: threads, limits, descriptors, file locks, CPUs."""
