"""Networks with a leading population axis, action distributions, normalisers, the policy."""
