package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/parleymesh/parley/internal/audit"
)

// heads are how far each log was seen to go, with the root of what was there. They
// are kept outside of the database, so that whoever can write to it cannot cut off
// the end of a log, or write its past anew, without VerifyLogs saying so.
type heads struct {
	mu    sync.Mutex // guards what follows
	trees map[string]*audit.Tree
}

// A head is one of them as it is kept. The edge is enough to go on with the tree,
// and its root is the log's.
type head struct {
	Log  string `json:"log"`
	Size uint64 `json:"size"`
	Edge []byte `json:"edge"` // its hashes, one after the other
}

// maxHeads bounds what MarshalHeads makes, in bytes: what can be sealed.
const maxHeads = 900 << 10

// UnmarshalHeads takes up what MarshalHeads made when this store was last open.
func (s *Store) UnmarshalHeads(b []byte) error {
	var all []head
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("heads: %w", err)
	}
	trees := map[string]*audit.Tree{}
	for _, h := range all {
		var edge []audit.Hash
		for hash := range slices.Chunk(h.Edge, len(audit.Hash{})) {
			if len(hash) < len(audit.Hash{}) {
				return fmt.Errorf("the head of %s: a hash of %d bytes", h.Log, len(hash))
			}
			edge = append(edge, audit.Hash(hash))
		}
		t, err := audit.NewTree(h.Size, edge)
		if err != nil {
			return fmt.Errorf("the head of %s: %w", h.Log, err)
		}
		trees[h.Log] = t
	}
	s.heads.mu.Lock()
	defer s.heads.mu.Unlock()
	s.heads.trees = trees
	return nil
}

// MarshalHeads are the heads as they are now. Of more logs than can be kept, left
// is how many have none: the server's own log is never among them.
func (s *Store) MarshalHeads() (b []byte, left int, err error) {
	s.heads.mu.Lock()
	defer s.heads.mu.Unlock()
	all := make([]head, 0, len(s.heads.trees))
	size := 0
	for _, log := range s.heads.names(s.log) {
		t := s.heads.trees[log]
		h := head{Log: log, Size: t.Size()}
		for _, hash := range t.Edge() {
			h.Edge = append(h.Edge, hash[:]...)
		}
		text, err := json.Marshal(h)
		if err != nil {
			return nil, 0, err
		}
		if size += len(text) + 1; size > maxHeads {
			left++
			continue
		}
		all = append(all, h)
	}
	b, err = json.Marshal(all)
	return b, left, err
}

// names are the logs that have a head, first the own one. It requires mu.
func (h *heads) names(own string) []string {
	var names []string
	for log := range h.trees {
		names = append(names, log)
	}
	slices.SortFunc(names, func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == own || b != own && a < b:
			return -1
		}
		return 1
	})
	return names
}

// ExtendHeads takes in what was recorded since, and says how many entries that
// were. A log that is shorter than its head stays as it was, for VerifyLogs to tell.
func (s *Store) ExtendHeads(ctx context.Context) (fresh uint64, err error) {
	const doing = "extend the heads of the logs"
	logs, err := list(ctx, s.read, scanLog, selectLogs)
	if err != nil {
		return 0, s.explain(doing, err)
	}
	s.heads.mu.Lock()
	defer s.heads.mu.Unlock()
	if s.heads.trees == nil {
		s.heads.trees = map[string]*audit.Tree{}
	}
	var errs []error
	for _, l := range logs {
		t := s.heads.trees[l.name]
		if t == nil {
			t = &audit.Tree{}
			s.heads.trees[l.name] = t
		}
		before := t.Size()
		if err := s.extend(ctx, l.name, t, uint64(l.size)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.name, s.explain(doing, err)))
		}
		fresh += t.Size() - before
	}
	return fresh, errors.Join(errs...)
}

// extend appends the leaves of a log to its tree, up to size.
func (s *Store) extend(ctx context.Context, log string, t *audit.Tree, size uint64) error {
	for t.Size() < size {
		leaves, err := s.leaves(ctx, s.read, log, int64(t.Size()), int64(min(size, t.Size()+verifyPage)))
		if err != nil {
			return err
		}
		for _, leaf := range leaves {
			t.Append(leaf)
		}
	}
	return nil
}

// A seal is one head for VerifyLogs; the zero seal knows nothing.
type seal struct {
	size uint64
	root audit.Hash
}

// seals are the heads of all logs.
func (s *Store) seals() map[string]seal {
	s.heads.mu.Lock()
	defer s.heads.mu.Unlock()
	all := make(map[string]seal, len(s.heads.trees))
	for log, t := range s.heads.trees {
		if t.Size() > 0 {
			all[log] = seal{t.Size(), t.Root()}
		}
	}
	return all
}

// check says what is wrong with a log that was recomputed up to tree, and the head
// is where it ends now.
func (h seal) check(tree *audit.Tree) string {
	if h.size > 0 && tree.Size() == h.size && tree.Root() != h.root {
		return "up to here it is not the log that there was, which had another root at this length"
	}
	return ""
}

// missing says that a log ends before its head.
func (h seal) missing(tree *audit.Tree) string {
	if tree.Size() < h.size {
		return fmt.Sprintf("it is missing, the log had %d entries", h.size)
	}
	return ""
}
