"""C++ for what torch's own operations are slow at on a CPU."""
