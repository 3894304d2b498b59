"""Clients that only talk to a running server over the wire: the load test, the demo, and what both are made of."""
