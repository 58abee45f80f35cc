"""private images, and with whom they are shared"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "builds",
        sa.Column("visibility", sa.String(16), nullable=False, server_default="site"),
    )
    op.create_index("builds_by_image", "builds", ["image_id"])
    op.create_index("builds_by_filename", "builds", ["filename"])
    op.create_table(
        "shares",
        sa.Column("image_id", sa.String(500), primary_key=True),
        sa.Column(
            "owner_id",
            sa.Integer(),
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column(
            "user_id",
            sa.Integer(),
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_shares_user_id", "shares", ["user_id"])


def downgrade() -> None:
    op.drop_table("shares")
    op.drop_index("builds_by_filename", "builds")
    op.drop_index("builds_by_image", "builds")
    op.drop_column("builds", "visibility")
