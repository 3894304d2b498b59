"""The front ends: each translates one protocol to the service's nouns and back, and decides nothing."""
