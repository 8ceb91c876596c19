-- By what the two ends of one call are found.
ALTER TABLE entry ADD COLUMN call_id TEXT NOT NULL DEFAULT '';
CREATE INDEX entry_call ON entry (call_id, position) WHERE call_id <> '';
