"""Rollouts: a candidate version beside the one an alias points at, compared as requests end. Knows no requests."""
