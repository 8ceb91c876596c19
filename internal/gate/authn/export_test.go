package authn

import (
	"crypto/sha256"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

// Remember puts a token in as if i had verified it.
func (t *Tokens) Remember(token string, i *jose.Issuer, facts *identity.Token) {
	t.cache.put(sha256.Sum256([]byte(token)), seen{i, &jose.Verified{Token: *facts}})
}

// Held is how many tokens are remembered, and about how many bytes of them.
func (t *Tokens) Held() (n, bytes int) {
	for i := range t.cache.shards {
		for _, generation := range []map[tokenHash]seen{t.cache.shards[i].young, t.cache.shards[i].old} {
			for _, e := range generation {
				n++
				bytes += e.facts.Size()
			}
		}
	}
	return n, bytes
}
