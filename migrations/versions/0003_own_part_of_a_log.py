"""own part of a log"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("builds", sa.Column("log_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("builds", "log_bytes")
