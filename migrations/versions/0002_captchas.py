"""captchas"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "captchas",
        sa.Column("id", sa.String(43), primary_key=True),
        sa.Column("answer", sa.String(16), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("shown", sa.Integer(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_captchas_address", "captchas", ["address"])


def downgrade() -> None:
    op.drop_table("captchas")
