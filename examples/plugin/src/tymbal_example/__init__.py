"""What this package adds to Tymbal; each module is imported when it is chosen."""
