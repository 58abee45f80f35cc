"""whom an OpenID provider knows, groups, and images that are shared with them"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def _reference(column: str, target: str, *, is_key: bool = True) -> sa.Column:
    return sa.Column(
        column,
        sa.Integer(),
        sa.ForeignKey(target, ondelete="CASCADE"),
        primary_key=is_key,
        nullable=False,
    )


def upgrade() -> None:
    op.add_column("users", sa.Column("admin_until", sa.DateTime(timezone=True)))
    op.create_table(
        "subjects",
        sa.Column("issuer", sa.String(255), primary_key=True),
        sa.Column("subject", sa.String(255), primary_key=True),
        _reference("user_id", "users.id", is_key=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_subjects_user_id", "subjects", ["user_id"])
    op.create_table(
        "used_once",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_used_once_until", "used_once", ["until"])
    op.create_table(
        "groups",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("is_local", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "memberships",
        _reference("group_id", "groups.id"),
        _reference("user_id", "users.id"),
        sa.Column("until", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_memberships_user_id", "memberships", ["user_id"])
    op.create_table(
        "group_shares",
        sa.Column("image_id", sa.String(500), primary_key=True),
        _reference("owner_id", "users.id"),
        _reference("group_id", "groups.id"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_group_shares_group_id", "group_shares", ["group_id"])


def downgrade() -> None:
    for table in ("group_shares", "memberships", "groups", "used_once", "subjects"):
        op.drop_table(table)
    op.drop_column("users", "admin_until")
