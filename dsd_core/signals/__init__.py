"""What a teacher says about a dataset, computed once and kept: `store` holds it on disk."""
