"""Building blocks that more than one chapter uses; they import PyTorch and nothing of the suite."""
