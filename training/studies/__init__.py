"""Studies: runs set side by side, each from one frozen config, each ending in a report folder."""
