package authn

import (
	"crypto/sha256"
	"crypto/subtle"
	"time"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Keys are the live API keys of a snapshot. A revoked key is simply not among
// them. Keys is immutable and safe for concurrent use; nil holds none.
type Keys struct{ byID map[string]*snapshot.APIKey }

// NewKeys indexes keys. Of two with one id the first counts.
func NewKeys(keys []snapshot.APIKey) *Keys {
	k := &Keys{byID: make(map[string]*snapshot.APIKey, len(keys))}
	for i := range keys {
		if _, ok := k.byID[keys[i].ID]; !ok {
			k.byID[keys[i].ID] = &keys[i]
		}
	}
	return k
}

// Lookup is the caller that key stands for at now. The error is ErrKeyMalformed,
// ErrKeyUnknown or ErrKeyExpired; with the last one, the caller returned is the
// key's name and id for the record, without scopes.
func (k *Keys) Lookup(key string, now time.Time) (identity.Caller, error) {
	id, err := ParseKey(key)
	if err != nil {
		return identity.Caller{}, err
	}
	var whole [keyLength]byte
	copy(whole[:], key)
	digest := sha256.Sum256(whole[:])
	rec := &snapshot.APIKey{}
	known := false
	if k != nil && k.byID[id] != nil {
		rec, known = k.byID[id], true
	}
	// Also for an id that is not there: an answer takes as long either way.
	if subtle.ConstantTimeCompare(digest[:], rec.Digest[:]) != 1 || !known {
		return identity.Caller{}, ErrKeyUnknown
	}
	c := identity.Caller{KeyID: rec.ID, KeyName: rec.Name}
	if !rec.NotAfter.IsZero() && !now.Before(rec.NotAfter) {
		return c, ErrKeyExpired
	}
	c.Scopes, c.KeyNotAfter = rec.Scopes, rec.NotAfter
	return c, nil
}
