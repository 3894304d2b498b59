"""The contract between those who make adapters (training) and those who serve them (server). No torch, no server."""
