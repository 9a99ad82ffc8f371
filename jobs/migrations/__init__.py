"""The database's versions, applied by `jobs.db.migrate`."""
