"""The training loop: explore, update, log, checkpoint; devices, locks and signals around it."""
