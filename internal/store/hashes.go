package store

import (
	"context"

	"github.com/parleymesh/parley/internal/audit"
)

// hashes are the keys of what is found by a keyed hash.
type hashes struct{ persons, paths *audit.HashKey }

func newHashes(secret []byte) hashes {
	return hashes{audit.NewHashKey(audit.DeriveKey(secret, personPurpose)), audit.NewHashKey(audit.DeriveKey(secret, PathPurpose))}
}

// PathPurpose is what the key for paths is derived for, which agents have too; they
// cannot make the hash of a person.
const (
	PathPurpose   = "paths"
	personPurpose = "persons"
)

// person is what events of subject are found by, "" of nobody.
func (h hashes) person(subject string) string {
	if subject == "" {
		return ""
	}
	return h.persons.Hash(subject).String()
}

// path is what events of a path are found by that has a template, "" of none.
func (h hashes) path(path string) string {
	if path == "" {
		return ""
	}
	return h.paths.Hash(path).String()
}

// Hashed says whether something is found by a keyed hash: with another secret it
// would be found no more.
func (s *Store) Hashed(ctx context.Context) (hashed bool, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM entry WHERE person <> '')
		OR EXISTS (SELECT 1 FROM entry WHERE path_hash <> '') OR EXISTS (SELECT 1 FROM erasure)`).Scan(&hashed)
	return hashed, s.explain("look for keyed hashes", err)
}
