"""Who makes the calls."""
