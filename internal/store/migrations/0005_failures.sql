-- Calls that were allowed and failed, and those that ended at the caller's own
-- host, before there was a connection that anything could be said of.
ALTER TABLE edge_minute ADD COLUMN failed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE edge_minute ADD COLUMN unsent BIGINT NOT NULL DEFAULT 0;
