package audit

import "crypto/sha256"

// A Hash is a node of an RFC 6962 Merkle tree.
type Hash [sha256.Size]byte

// LeafHash is the RFC 6962 section 2.1 hash of an entry: SHA-256(0x00 || data),
// over what is Committed of the body: its private member, if it is still there,
// does not count.
func LeafHash(body []byte) (leaf Hash) {
	end, private := committedEnd(body)
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(body[:end])
	if private {
		h.Write([]byte{'}'})
	}
	h.Sum(leaf[:0])
	return leaf
}

// An Entry is an event as it stands in a log.
type Entry struct {
	// Log names the log: one a process and data directory, never shared.
	Log string
	// Index counts from 0 without holes.
	Index uint64
	// Leaf is LeafHash(Body).
	Leaf Hash
	// Body is the canonical encoding, with its private member or without.
	Body []byte
}
