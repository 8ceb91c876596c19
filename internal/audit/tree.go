package audit

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
)

// A Tree is the right edge of an RFC 6962 Merkle tree: enough to append to it
// and to know its root, without any entry. The zero Tree is empty. It is not
// safe for concurrent use.
type Tree struct {
	size uint64
	// edge holds the roots of the complete subtrees, largest first: one for each
	// bit that is set in size.
	edge []Hash
}

// Append adds the leaf hash of the next entry.
func (t *Tree) Append(leaf Hash) { t.AppendNodes(nil, leaf) }

// AppendNodes is Append, and appends to dst every node that the leaf completes,
// leaf first and each one level up: what golang.org/x/mod/sumdb/tlog calls the
// stored hashes of the entry.
func (t *Tree) AppendNodes(dst []Hash, leaf Hash) []Hash {
	dst = append(dst, leaf)
	for range bits.TrailingZeros64(^t.size) {
		last := len(t.edge) - 1
		leaf = nodeHash(t.edge[last], leaf)
		t.edge = t.edge[:last]
		dst = append(dst, leaf)
	}
	t.edge = append(t.edge, leaf)
	t.size++
	return dst
}

// Size is the number of leaves.
func (t *Tree) Size() uint64 { return t.size }

// Root is the RFC 6962 section 2.1 hash of the tree; that of an empty tree is
// the SHA-256 of nothing.
func (t *Tree) Root() Hash {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	root := t.edge[len(t.edge)-1]
	for i := len(t.edge) - 2; i >= 0; i-- {
		root = nodeHash(t.edge[i], root)
	}
	return root
}

// Edge is what NewTree makes the same tree of: with Size all there is to it.
func (t *Tree) Edge() []Hash { return append([]Hash(nil), t.edge...) }

// NewTree is a tree of size leaves with that edge, the roots of its complete
// subtrees, largest first. Another number of them is an error.
func NewTree(size uint64, edge []Hash) (*Tree, error) {
	if len(edge) != bits.OnesCount64(size) {
		return nil, fmt.Errorf("a tree of %d entries with an edge of %d hashes", size, len(edge))
	}
	return &Tree{size: size, edge: append([]Hash(nil), edge...)}, nil
}

// nodeHash is SHA-256(0x01 || left || right).
func nodeHash(left, right Hash) Hash {
	var b [1 + 2*sha256.Size]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}
