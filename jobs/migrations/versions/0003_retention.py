"""What retention has taken, and whose the storage is."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.bulk_insert(installation, [{"id": secrets.token_hex(16)}])
    op.add_column("jobs", sa.Column("checkpoints_gone_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("files_gone_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("models", sa.Column("files_gone_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("models", "files_gone_at")
    op.drop_column("jobs", "files_gone_at")
    op.drop_column("jobs", "checkpoints_gone_at")
    op.drop_table("installation")
