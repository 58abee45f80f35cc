"""first tables"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
STATE = sa.String(16)
IS_ACTIVE = sa.text("state IN ('PENDING', 'STARTED', 'BUILDING', 'CONVERTING')")


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("password_hash", sa.String(256), nullable=False),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("is_confirmed", sa.Boolean(), nullable=False),
        sa.Column("credential_version", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
    )
    op.create_index("one_user_of_a_name", "users", [sa.text("lower(name)")], unique=True)
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column(
            "user_id", sa.Integer(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("last_used_at", TIME),
    )
    op.create_index("ix_tokens_user_id", "tokens", ["user_id"])
    op.create_table(
        "runs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("join_key", sa.String(100), nullable=False),
        sa.Column("identity", sa.String(100)),
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id", ondelete="SET NULL")),
        sa.Column("platform", sa.String(40), nullable=False),
        sa.Column("force", sa.Boolean(), nullable=False),
        sa.Column("state", STATE, nullable=False),
        sa.Column("stage", sa.String(40)),
        sa.Column("message", sa.Text()),
        sa.Column("hint", sa.Text()),
        sa.Column("error_code", sa.String(40)),
        sa.Column("progress_done", sa.Integer()),
        sa.Column("progress_total", sa.Integer()),
        sa.Column("progress_what", sa.String(200)),
        sa.Column("worker", sa.String(100)),
        sa.Column("heartbeat_at", TIME),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("not_before", TIME),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("building_at", TIME),
        sa.Column("converting_at", TIME),
        sa.Column("ended_at", TIME),
        sa.Column("audit", sa.JSON()),
    )
    op.create_index(
        "one_active_run",
        "runs",
        ["join_key"],
        unique=True,
        sqlite_where=IS_ACTIVE,
        postgresql_where=IS_ACTIVE,
    )
    op.create_index("runs_by_state", "runs", ["state", "created_at"])
    op.create_index("runs_by_identity", "runs", ["identity", "ended_at"])
    op.create_index("ix_runs_worker", "runs", ["worker"])
    op.create_table(
        "builds",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column(
            "user_id", sa.Integer(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("run_id", sa.String(36), sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("image_id", sa.String(500), nullable=False),
        sa.Column("filename", sa.String(255)),
        sa.Column("engine", sa.String(20), nullable=False),
        sa.Column("push", sa.Boolean(), nullable=False),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("state", STATE),
        sa.Column("message", sa.Text()),
        sa.Column("hint", sa.Text()),
        sa.Column("error_code", sa.String(40)),
        sa.Column("sha256", sa.String(64)),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("pushed_digest", sa.String(100)),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("deleted_at", TIME),
    )
    op.create_index("builds_by_user", "builds", ["user_id", "created_at"])
    op.create_index("ix_builds_run_id", "builds", ["run_id"])
    op.create_index("ix_builds_sha256", "builds", ["sha256"])
    op.create_table(
        "failed_logins",
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("until", TIME, nullable=False),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("user", sa.String(64)),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("subject", sa.String(300)),
        sa.Column("address", sa.String(64)),
    )
    op.create_index("ix_audit_events_at", "audit_events", ["at"])


def downgrade() -> None:
    for table in ("audit_events", "failed_logins", "builds", "runs", "tokens", "users"):
        op.drop_table(table)
