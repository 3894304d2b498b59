"""What the server tells its operators: logs, metrics and traces, every name and unit in one place."""
