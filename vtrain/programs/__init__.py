"""Programs that jobs can name without writing code (protocol §1)."""
