"""The deployed half: bundles, the gate, promotion, the paper trader."""
