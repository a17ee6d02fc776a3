"""Forgotten users: the secret of their digests, the list, requests, and certificates (append-only)."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)
REFUSAL = "certificates are append-only"


def upgrade() -> None:
    """Applies it."""
    op.create_table(
        "secret",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_secret"),
        sa.UniqueConstraint("name", name="uq_secret_name"),
    )
    op.create_table(
        "forgotten_user",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_forgotten_user"),
        sa.UniqueConstraint("digest", name="uq_forgotten_user_digest"),
    )
    op.create_table(
        "forget_request",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("users", JSON, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.String(200), nullable=False),
        sa.Column("done", JSON, nullable=False),
        sa.Column("models", JSON, nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_forget_request"),
        sa.UniqueConstraint("request_id", name="uq_forget_request_request_id"),
    )
    op.create_table(
        "forget_certificate",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("users", JSON, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.String(200), nullable=False),
        sa.Column("requested", MOMENT, nullable=False),
        sa.Column("completed", MOMENT, nullable=False),
        sa.Column("stores", JSON, nullable=False),
        sa.Column("models", JSON, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("code_version", sa.String(64), nullable=False),
        sa.Column("dagster_run_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_forget_certificate"),
        sa.UniqueConstraint("request_id", name="uq_forget_certificate_request_id"),
    )
    _protect()


def _protect() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER forget_certificate_no_{action.lower()} BEFORE {action} ON forget_certificate "
                f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION forget_certificate_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER forget_certificate_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON forget_certificate "
        "FOR EACH STATEMENT EXECUTE FUNCTION forget_certificate_append_only()"
    )


def downgrade() -> None:
    """Takes it back."""
    for table in ("forget_certificate", "forget_request", "forgotten_user", "secret"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION forget_certificate_append_only")
