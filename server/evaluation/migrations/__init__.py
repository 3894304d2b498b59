"""Alembic migrations of the evaluation's tables; run when a store opens (see ``server.evaluation.store``)."""
