"""Agents that trade, and those who judge them."""

import os

# Read by OpenMP (libgomp) when torch is loaded, so it cannot wait for training/device.py. Threads that spin for
# milliseconds at every barrier, as they do by default, make training 5 to 30 times slower as soon as anything else
# uses the cores; sleeping after a thousand turns costs about a fifth on an idle machine. Set the variable to override.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
