"""What is learned from: masks, and one file an objective."""
