"""Scores what was served, beside the requests and never in their way. Knows no engine and no protocol."""
