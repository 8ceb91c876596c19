package authn

import (
	"crypto/sha256"
	"sync"

	"github.com/parleymesh/parley/internal/jose"
)

// Bounds of the cache of verified tokens: shards * 2 generations of each.
const (
	cacheShards  = 16
	cacheEntries = 512       // a generation of a shard: 16384 tokens in all
	cacheBytes   = 512 << 10 // about 16 MiB in all
)

// A tokenHash names a token without being one.
type tokenHash [sha256.Size]byte

// A seen token is what was verified of it, and by which issuer: another Issuer,
// with other keys or rules, has not seen it.
type seen struct {
	issuer *jose.Issuer
	facts  *jose.Verified
}

// cache keeps what verified tokens say, never the tokens. It holds two generations
// of entries: what is used moves to the young one, and once that is full the old
// one is dropped. So it is bounded without a list to keep in order.
type cache struct {
	shards [cacheShards]struct {
		sync.RWMutex
		young, old map[tokenHash]seen // guarded by RWMutex
		bytes      int                // of young
	}
}

func (c *cache) get(h tokenHash) (seen, bool) {
	s := &c.shards[h[0]%cacheShards]
	s.RLock()
	e, ok := s.young[h]
	if ok {
		s.RUnlock()
		return e, true
	}
	e, ok = s.old[h]
	s.RUnlock()
	if ok {
		c.put(h, e)
	}
	return e, ok
}

func (c *cache) put(h tokenHash, e seen) {
	size := e.facts.Size()
	s := &c.shards[h[0]%cacheShards]
	s.Lock()
	defer s.Unlock()
	if _, again := s.young[h]; again {
		s.young[h] = e // of about the same size
		return
	}
	if s.young == nil || len(s.young) >= cacheEntries || s.bytes+size > cacheBytes {
		s.young, s.old, s.bytes = map[tokenHash]seen{}, s.young, 0
	}
	s.young[h] = e
	s.bytes += size
}
