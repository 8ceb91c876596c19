package authn

import (
	"crypto/sha256"
	"hash/maphash"
	"sync"

	"github.com/parleymesh/parley/internal/jose"
)

// Bounds of a cache: shards * 2 generations of each.
const (
	cacheShards  = 16
	cacheEntries = 512       // a generation of a shard: 16384 entries in all
	cacheBytes   = 512 << 10 // about 16 MiB in all
)

// A tokenHash names a token without being one.
type tokenHash [sha256.Size]byte

// hashOf does not allocate for tokens of usual length: to convert one would.
func hashOf(token string) tokenHash {
	var room [2048]byte
	return sha256.Sum256(append(room[:0], token...))
}

// A seen token is what was verified of it, and by which issuer: another Issuer,
// with other keys or rules, has not seen it.
type seen struct {
	issuer *jose.Issuer
	facts  *jose.Verified
}

func (s seen) size() int { return s.facts.Size() }

// seed spreads keys over shards in a way that nobody can foresee.
var seed = maphash.MakeSeed()

// A cache keeps what is costly to find out. It holds two generations of entries:
// what is used moves to the young one, and once that is full the old one is
// dropped. So it is bounded without a list to keep in order.
type cache[K comparable, E interface{ size() int }] struct {
	shards [cacheShards]struct {
		sync.RWMutex
		young, old map[K]E // guarded by RWMutex
		bytes      int     // of young
	}
}

func (c *cache[K, E]) get(key K) (E, bool) {
	s := &c.shards[maphash.Comparable(seed, key)%cacheShards]
	s.RLock()
	e, ok := s.young[key]
	if ok {
		s.RUnlock()
		return e, true
	}
	e, ok = s.old[key]
	s.RUnlock()
	if ok {
		c.put(key, e)
	}
	return e, ok
}

func (c *cache[K, E]) put(key K, e E) {
	size := e.size()
	s := &c.shards[maphash.Comparable(seed, key)%cacheShards]
	s.Lock()
	defer s.Unlock()
	if _, again := s.young[key]; again {
		s.young[key] = e // of about the same size
		return
	}
	if s.young == nil || len(s.young) >= cacheEntries || s.bytes+size > cacheBytes {
		s.young, s.old, s.bytes = map[K]E{}, s.young, 0
	}
	s.young[key] = e
	s.bytes += size
}
