package store

import (
	"context"

	"github.com/parleymesh/parley/internal/audit"
)

// hashes are the keys of what is found by a keyed hash.
type hashes struct{ persons *audit.HashKey }

func newHashes(secret []byte) hashes {
	return hashes{audit.NewHashKey(audit.DeriveKey(secret, "persons"))}
}

// person is what events of subject are found by, "" of nobody.
func (h hashes) person(subject string) string {
	if subject == "" {
		return ""
	}
	return h.persons.Hash(subject).String()
}

// Hashed says whether something is found by a keyed hash: with another secret it
// would be found no more.
func (s *Store) Hashed(ctx context.Context) (hashed bool, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM entry WHERE person <> '') OR EXISTS (SELECT 1 FROM erasure)`).Scan(&hashed)
	return hashed, s.explain("look for keyed hashes", err)
}
