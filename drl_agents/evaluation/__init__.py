"""Judging a policy: performance measures, splits of the bars, overfitting statistics, results and reports."""
