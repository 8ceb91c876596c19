package spool

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
)

// A tracer follows the tree through the segments of a log, oldest first, and holds
// them to the edges in their headers and to what was signed. Where an entry is
// declared lost, the tree behind it is known again from the next edge or checkpoint:
// what was signed stays what the log is, and the log says what of it is missing.
type tracer struct {
	key *checkpoint.Verifier // nil where signatures are not looked at
	// tree is that of all entries so far, nil where it is not known.
	tree *audit.Tree
	// edge is that of the tree before the file that was traced last.
	edge   []audit.Hash
	edged  bool
	newest *stand
}

func newTracer(key *checkpoint.Verifier) *tracer { return &tracer{key: key} }

// file follows one, and returns what is wrong with it.
func (t *tracer) file(c *contents, first uint64) (wrong []string) {
	if first == 0 {
		t.tree = &audit.Tree{}
	}
	switch {
	case c.edged && t.tree != nil && !slices.Equal(t.tree.Edge(), c.edge):
		wrong = append(wrong, fmt.Sprintf("the entries before entry %d are not those that its header was made with", first))
		t.tree = nil
	case t.tree == nil && !c.edged:
	case t.tree != nil:
		c.edge, c.edged = t.tree.Edge(), true
	}
	if t.tree == nil && c.edged {
		t.tree, _ = audit.NewTree(first, c.edge) // as many as first asks for
	}
	t.edge, t.edged = c.edge, c.edged
	stands := slices.DeleteFunc(slices.Clone(c.stands), func(st *stand) bool {
		err := st.check(c.log, t.key)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		return err != nil
	})
	next := first
	for _, r := range c.records {
		if r.index != next { // what is between is missing, and said to be
			t.tree, next = nil, r.index
		}
		wrong = append(wrong, t.at(next, &stands)...)
		switch {
		case t.tree == nil:
		case lostEntry(r.body):
			t.tree = nil
		default:
			t.tree.Append(r.leaf)
		}
		next++
	}
	wrong = append(wrong, t.at(next, &stands)...)
	for _, st := range stands {
		if len(c.losses) > 0 && c.losses[len(c.losses)-1].to >= next {
			break // that is said already
		}
		wrong = append(wrong, fmt.Sprintf("a checkpoint of %d entries is signed, and the file ends with entry %d", st.size, int64(next)-1))
		t.newest = st
	}
	return wrong
}

// at holds the tree of the first next entries to the checkpoint of as many.
func (t *tracer) at(next uint64, stands *[]*stand) (wrong []string) {
	for len(*stands) > 0 && (*stands)[0].size <= next {
		st := (*stands)[0]
		*stands = (*stands)[1:]
		if st.size == next && t.tree != nil && t.tree.Root() != st.tree().Root() {
			wrong = append(wrong, fmt.Sprintf("the first %d entries are not those that the checkpoint was signed for", next))
		}
		if st.size == next {
			t.tree = st.tree()
		}
		if t.newest == nil || st.size > t.newest.size {
			t.newest = st
		}
	}
	return wrong
}

// lostEntry says that an entry stands for another one in the tree, which was damaged
// after it was sealed.
func lostEntry(body []byte) bool {
	if !bytes.Contains(body, []byte(audit.Gap)) {
		return false
	}
	text, err := canonical(nil, body)
	if err != nil {
		return false
	}
	e, err := audit.Decode(text)
	return err == nil && e.Reason == string(damaged) && e.Gap != nil && e.Gap.Count > 0
}
