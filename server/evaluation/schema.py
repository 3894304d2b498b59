"""The tables of evaluation and where their migrations lie. Knows no rules.

Of a request there is one row, of its references and scores at most one more. Texts are there only where the operator
allows them; a reference set's always, as somebody put it there.
"""

from pathlib import Path

import sqlalchemy as sa

SCRIPTS = Path(__file__).parent / "migrations"
VERSION_TABLE = "medley_evaluation_version"
METADATA = sa.MetaData()
JSON = sa.JSON(none_as_null=True)

REQUESTS = sa.Table(
    "evaluation_requests",
    METADATA,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("request_id", sa.String(160), nullable=False),
    sa.Column("who", sa.String(128), nullable=False),
    sa.Column("adapters", sa.String(200), nullable=False),
    sa.Column("digests", JSON, nullable=False),
    sa.Column("code", sa.String(32), nullable=False),
    sa.Column("input_sha256", sa.String(64), nullable=False),
    sa.Column("num_prompt_tokens", sa.Integer, nullable=False),
    sa.Column("num_completion_tokens", sa.Integer, nullable=False),
    sa.Column("ttft_s", sa.Float, nullable=True),
    sa.Column("e2e_s", sa.Float, nullable=False),
    sa.Column("finished_s", sa.Float, nullable=False),
    sa.Column("rollout_id", sa.String(64), nullable=True),
    sa.Column("arm", sa.String(16), nullable=True),
    sa.Column("signals", JSON, nullable=False),
    sa.Column("metrics", JSON, nullable=False),
    sa.Column("text", sa.Text, nullable=True),
    sa.Index("evaluation_requests_by_caller", "who", "request_id"),
    sa.Index("evaluation_requests_by_adapters", "adapters", "finished_s"),
    sa.Index("evaluation_requests_by_rollout", "rollout_id", "finished_s"),
    sa.Index("evaluation_requests_by_age", "finished_s"),
)
# Without scores: references that are still to be scored, whose texts are there then.
SCORES = sa.Table(
    "evaluation_scores",
    METADATA,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("reference_sha256", JSON, nullable=False),
    sa.Column("reference_texts", JSON, nullable=True),
    sa.Column("scores", JSON, nullable=True),
    sa.Column("received_s", sa.Float, nullable=False),
    sa.Column("claimed_s", sa.Float, nullable=False),
    sa.Column("is_waiting", sa.Boolean, nullable=False),
    sa.Index("evaluation_scores_waiting", "is_waiting", "claimed_s"),
)
SETS = sa.Table(
    "evaluation_reference_sets",
    METADATA,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("patterns", JSON, nullable=False),
    sa.Column("who", sa.String(128), nullable=False),
    sa.Column("num_references", sa.Integer, nullable=False),
    sa.Column("updated_s", sa.Float, nullable=False),
)
SET_REFERENCES = sa.Table(
    "evaluation_set_references",
    METADATA,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("set_name", sa.String(64), primary_key=True),
    sa.Column("input_sha256", sa.String(64), primary_key=True),
    sa.Column("reference_texts", JSON, nullable=False),
    sa.Index("evaluation_set_references_by_input", "input_sha256"),
)
