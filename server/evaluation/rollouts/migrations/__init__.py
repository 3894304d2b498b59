"""Alembic migrations of the rollouts; run when their store opens (see ``server.evaluation.rollouts.store``)."""
