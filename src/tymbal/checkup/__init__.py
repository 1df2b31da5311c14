"""What this machine can do: what is installed, and how fast it works."""
