"""What the operating system gives and takes: threads, limits, descriptors, CPUs."""
