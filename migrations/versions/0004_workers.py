"""workers, logs in the database, and the target that a run is for"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("runs", sa.Column("target", sa.String(60), nullable=False, server_default=""))
    op.create_table(
        "workers",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("host", sa.String(60), nullable=False),
        sa.Column("version", sa.String(40), nullable=False),
        sa.Column("platforms", sa.JSON(), nullable=False),
        sa.Column("emulated", sa.JSON(), nullable=False),
        sa.Column("targets", sa.JSON(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("busy", sa.Integer(), nullable=False),
        sa.Column("is_stopping", sa.Boolean(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("heartbeat_at", TIME, nullable=False),
    )
    op.create_table(
        "log_pieces",
        sa.Column("run_id", sa.String(36), primary_key=True),
        sa.Column("start_byte", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("end_byte", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("written_at", TIME, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("log_pieces")
    op.drop_table("workers")
    op.drop_column("runs", "target")
