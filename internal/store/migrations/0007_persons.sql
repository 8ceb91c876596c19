-- By what an event of a person is found, and one of a path that stands in it as a
-- template: keyed hashes, so that no index holds what an erasure takes away.
ALTER TABLE entry ADD COLUMN person TEXT NOT NULL DEFAULT '';
ALTER TABLE entry ADD COLUMN path_hash TEXT NOT NULL DEFAULT '';
CREATE INDEX entry_person ON entry (person, position) WHERE person <> '';
CREATE INDEX entry_path_hash ON entry (path_hash, position) WHERE path_hash <> '';

-- Who was erased, by the same hash: what an agent delivers late of that time is
-- erased as it arrives.
CREATE TABLE erasure (
    person TEXT NOT NULL,
    issuer TEXT NOT NULL,   -- '' for every issuer
    before BIGINT NOT NULL, -- what happened before this
    PRIMARY KEY (person, issuer)
);
