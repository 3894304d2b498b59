"""Alembic migrations of the API keys; run when a key ring opens (see ``server.access.keys``)."""
