-- Identities that take no part, whatever the mesh file says.
CREATE TABLE ban (
    id     TEXT PRIMARY KEY, -- the SPIFFE ID
    actor  TEXT NOT NULL,
    reason TEXT NOT NULL,
    since  BIGINT NOT NULL
);
