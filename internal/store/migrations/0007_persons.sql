-- By what an event of a person is found: a keyed hash, so that no index holds what
-- an erasure takes away.
ALTER TABLE entry ADD COLUMN person TEXT NOT NULL DEFAULT '';
CREATE INDEX entry_person ON entry (person, position) WHERE person <> '';

-- Who was erased, by the same hash: what an agent delivers late of that time is
-- erased as it arrives.
CREATE TABLE erasure (
    person TEXT NOT NULL,
    issuer TEXT NOT NULL,   -- '' for every issuer
    before BIGINT NOT NULL, -- what happened before this
    PRIMARY KEY (person, issuer)
);
