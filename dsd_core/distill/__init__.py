"""The method: losses as pure functions, and the task that computes them for a batch."""
