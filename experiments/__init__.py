"""What to run, and the record of it."""
