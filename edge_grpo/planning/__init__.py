"""What memory a run needs, reckoned from its settings before any weight is loaded."""
