-- Join tokens: by one of them a host's agent gets its first certificate.
CREATE TABLE join_token (
    id      TEXT PRIMARY KEY,
    digest  BYTEA NOT NULL, -- SHA-256 of the secret
    host    TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    used    BIGINT NOT NULL, -- 0: not yet
    key     TEXT NOT NULL    -- SHA-256 of the public key that it was used with
);
