-- The Merkle tree of each log, in place of the nodes of the server's own: the tiles
-- of C2SP tlog-tiles, up to 256 hashes of 32 bytes each, one after the other. Those
-- of level 0 are of entries, those of another of full tiles one level down.
DROP TABLE node;
CREATE TABLE tile (
    log    TEXT NOT NULL,
    level  BIGINT NOT NULL,
    n      BIGINT NOT NULL,
    hashes BYTEA NOT NULL,
    PRIMARY KEY (log, level, n)
);
-- What was signed of each log: of every hour the last checkpoint, so that the newest
-- is among them.
CREATE TABLE checkpoint (
    log  TEXT NOT NULL,
    hour BIGINT NOT NULL,  -- since 1970
    size BIGINT NOT NULL,  -- entries
    root BYTEA NOT NULL,
    note BYTEA NOT NULL,   -- the signed note
    time BIGINT NOT NULL,  -- when it was kept, by this server's clock
    PRIMARY KEY (log, hour)
);
CREATE INDEX checkpoint_size ON checkpoint (log, size);
-- The keys of the logs, as they were first seen.
CREATE TABLE log_key (
    log   TEXT PRIMARY KEY,
    key   TEXT NOT NULL,   -- public, as C2SP signed-note writes it
    host  TEXT NOT NULL,   -- whose agent brought it
    since BIGINT NOT NULL
);
-- What contradicts a log: the first of each kind.
CREATE TABLE fork (
    log    TEXT NOT NULL,
    reason TEXT NOT NULL,   -- tree, entry or key
    time   BIGINT NOT NULL,
    size   BIGINT NOT NULL, -- of the log that was brought
    host   TEXT NOT NULL,
    note   BYTEA NOT NULL,  -- the checkpoint that was brought; empty for an entry
    PRIMARY KEY (log, reason)
);
-- The bodies of a log, in bytes, and what it tells by the minute, for its figures.
ALTER TABLE log ADD COLUMN bytes BIGINT NOT NULL DEFAULT 0;
UPDATE log SET bytes = (SELECT COALESCE(SUM(LENGTH(body)), 0) FROM entry WHERE entry.log = log.name);
CREATE TABLE action_minute (
    minute  BIGINT NOT NULL,
    action  TEXT NOT NULL,
    outcome TEXT NOT NULL,
    events  BIGINT NOT NULL,
    PRIMARY KEY (minute, action, outcome)
);
INSERT INTO action_minute (minute, action, outcome, events)
    SELECT time - time % 60000000, action, outcome, COUNT(*) FROM entry
    GROUP BY time - time % 60000000, action, outcome;
-- Entries of which only the hash is there: none, or those that were pruned.
CREATE INDEX entry_pruned ON entry (log) WHERE LENGTH(body) = 0;
