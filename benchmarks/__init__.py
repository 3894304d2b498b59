"""Measurements of Medley against its peers, both in one run, in turn. Results are kept in docs/performance.md."""
