"""Alembic migrations of the registry's database; run when a registry opens (see ``adapters.registry_schema``)."""
