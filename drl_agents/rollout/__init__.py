"""What is collected before an update, and the returns computed from it."""
