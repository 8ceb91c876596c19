-- One dialect for SQLite and PostgreSQL: ids are TEXT made by the program, times
-- are BIGINT microseconds since 1970 (0: none), JSON is TEXT that the database
-- does not look into, bytes are BYTEA.

-- The one row of what the database as a whole counts and is called.
CREATE TABLE meta (
    id  BIGINT PRIMARY KEY CHECK (id = 1),
    rev BIGINT NOT NULL, -- number of the newest revision
    log TEXT NOT NULL    -- name of the server's own log
);

CREATE TABLE revision (
    number      BIGINT PRIMARY KEY,
    applied     BIGINT NOT NULL,
    actor       TEXT NOT NULL,
    message     TEXT NOT NULL,
    name        TEXT NOT NULL,
    text        BYTEA NOT NULL,
    digest      TEXT NOT NULL,
    ports       TEXT NOT NULL, -- JSON
    rollback_of BIGINT NOT NULL
);

CREATE TABLE api_key (
    id        TEXT PRIMARY KEY,
    name      TEXT NOT NULL,
    digest    BYTEA NOT NULL,
    scopes    TEXT NOT NULL, -- JSON
    not_after BIGINT NOT NULL,
    created   BIGINT NOT NULL,
    revoked   BIGINT NOT NULL
);

CREATE TABLE certificate (
    serial      TEXT PRIMARY KEY,
    kind        TEXT NOT NULL,
    id          TEXT NOT NULL,
    not_before  BIGINT NOT NULL,
    not_after   BIGINT NOT NULL,
    fingerprint TEXT NOT NULL,
    host        TEXT NOT NULL
);
CREATE INDEX certificate_not_after ON certificate (not_after);

-- Audit logs: the server's own and those collected from agents.
CREATE TABLE log (
    name    TEXT PRIMARY KEY,
    size    BIGINT NOT NULL, -- entries; their indexes are 0 to size-1
    updated BIGINT NOT NULL  -- when the newest arrived, by this server's clock
);

-- The order of arrival over all logs. The row is locked until the transaction
-- that took positions from it ends, so that positions become visible in order.
CREATE TABLE arrival (
    id   BIGINT PRIMARY KEY CHECK (id = 1),
    last BIGINT NOT NULL
);

CREATE TABLE entry (
    log        TEXT NOT NULL,
    idx        BIGINT NOT NULL,
    position   BIGINT NOT NULL,
    leaf       BYTEA NOT NULL,
    body       BYTEA NOT NULL,
    -- What is searched for, read out of the body.
    event_id   TEXT NOT NULL,
    time       BIGINT NOT NULL,
    action     TEXT NOT NULL,
    outcome    TEXT NOT NULL,
    caller     TEXT NOT NULL,
    callee     TEXT NOT NULL,
    trace_id   TEXT NOT NULL,
    request_id TEXT NOT NULL,
    PRIMARY KEY (log, idx)
);
CREATE UNIQUE INDEX entry_position ON entry (position);
CREATE INDEX entry_event_id ON entry (event_id);
CREATE INDEX entry_time ON entry (time);
CREATE INDEX entry_caller ON entry (caller, position);
CREATE INDEX entry_callee ON entry (callee, position);
CREATE INDEX entry_trace_id ON entry (trace_id) WHERE trace_id <> '';
CREATE INDEX entry_request_id ON entry (request_id) WHERE request_id <> '';

-- Nodes of the server's own Merkle tree, numbered as the stored hashes of
-- golang.org/x/mod/sumdb/tlog.
CREATE TABLE node (
    log  TEXT NOT NULL,
    idx  BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (log, idx)
);

-- Who called whom, by the minute: what a status is answered from.
CREATE TABLE edge_minute (
    minute  BIGINT NOT NULL,
    caller  TEXT NOT NULL, -- '' for somebody outside the mesh
    callee  TEXT NOT NULL,
    calls   BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    plain   BIGINT NOT NULL, -- without TLS
    last    BIGINT NOT NULL,
    PRIMARY KEY (minute, caller, callee)
);
