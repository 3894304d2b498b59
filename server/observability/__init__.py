"""What the server tells its operators: logs and metrics, every name and unit in one place."""
