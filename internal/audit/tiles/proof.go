package tiles

import (
	"context"
	"errors"
	"fmt"

	"github.com/parleymesh/parley/internal/audit"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrProof says that a proof does not prove it.
var ErrProof = errors.New("the proof does not hold")

// Root is the root that a tree of at least size entries had when it had that many.
func Root(ctx context.Context, load Loader, size uint64) (audit.Hash, error) {
	if err := checkSize(size); err != nil {
		return audit.Hash{}, err
	}
	h, err := tlog.TreeHash(int64(size), hashReader{ctx, load, size})
	return audit.Hash(h), err
}

// Inclusion proves that the tree of size entries has the one at index: the hashes
// from the leaf's sibling up to the root's child. It loads at most two tiles a
// level, all at once.
func Inclusion(ctx context.Context, load Loader, size, index uint64) ([]audit.Hash, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	if index >= size {
		return nil, fmt.Errorf("prove entry %d: the tree has %d entries", index, size)
	}
	p, err := tlog.ProveRecord(int64(size), int64(index), hashReader{ctx, load, size})
	return ours(p), err
}

// CheckInclusion says whether proof shows that the tree of size entries with that
// root has leaf at index; otherwise the error is ErrProof.
func CheckInclusion(proof []audit.Hash, size uint64, root audit.Hash, index uint64, leaf audit.Hash) error {
	if checkSize(size) != nil || index >= size {
		return fmt.Errorf("%w: entry %d of %d", ErrProof, index, size)
	}
	if tlog.CheckRecord(theirs(proof), int64(size), tlog.Hash(root), int64(index), tlog.Hash(leaf)) != nil {
		return ErrProof
	}
	return nil
}

// Consistency proves that the tree of size entries begins with the one that it was
// with old entries. It loads at most two tiles a level, all at once.
func Consistency(ctx context.Context, load Loader, size, old uint64) ([]audit.Hash, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	if old > size {
		return nil, fmt.Errorf("prove that it begins with %d entries: the tree has %d", old, size)
	}
	if old == 0 {
		return nil, nil // every tree begins with the empty one
	}
	p, err := tlog.ProveTree(int64(size), int64(old), hashReader{ctx, load, size})
	return ours(p), err
}

// CheckConsistency says whether proof shows that the tree of size entries with that
// root begins with the one of old entries and oldRoot; otherwise the error is
// ErrProof.
func CheckConsistency(proof []audit.Hash, size uint64, root audit.Hash, old uint64, oldRoot audit.Hash) error {
	switch {
	case checkSize(size) != nil || old > size:
		return fmt.Errorf("%w: %d entries are not the beginning of %d", ErrProof, old, size)
	case old == 0:
		if len(proof) > 0 || oldRoot != new(audit.Tree).Root() || size == 0 && root != oldRoot {
			return ErrProof
		}
		return nil
	case tlog.CheckTree(theirs(proof), int64(size), tlog.Hash(root), int64(old), tlog.Hash(oldRoot)) != nil:
		return ErrProof
	}
	return nil
}

func ours[P ~[]tlog.Hash](p P) []audit.Hash {
	hashes := make([]audit.Hash, len(p))
	for i, h := range p {
		hashes[i] = audit.Hash(h)
	}
	return hashes
}

func theirs(p []audit.Hash) []tlog.Hash {
	hashes := make([]tlog.Hash, len(p))
	for i, h := range p {
		hashes[i] = tlog.Hash(h)
	}
	return hashes
}
