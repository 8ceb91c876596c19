package spool

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
)

// A checkpoint in a header has a page of its own:
//
//	 0  size of the tree, 8 bytes
//	 8  length of the note, 4 bytes
//	12  CRC-32C of the size, the length, the edge and the note
//	16  the right edge of the tree, 32 bytes for each bit that is set in size
//
// and the note behind that. The older of the two is written over, so that a process
// that is killed meanwhile leaves the newest whole.
const (
	offNoteLen = 8
	offNoteSum = 12
	offNote    = 16
	maxNote    = page - offNote - 60*hashSize // a size has at most 60 bits
	hashSize   = len(audit.Hash{})
)

// A stand is a signed checkpoint with the tree that it is of.
type stand struct {
	size uint64
	edge []audit.Hash
	note []byte
}

// tree is the tree at that size. The edge has as many hashes as its size asks for.
func (st *stand) tree() *audit.Tree {
	t, err := audit.NewTree(st.size, st.edge)
	if err != nil {
		return &audit.Tree{} // readStand made none such
	}
	return t
}

// write puts st into slot of a header.
func (st *stand) write(header []byte, slot int) {
	at := header[offNotes+slot*page:][:page]
	// A reader that comes in between finds a wrong sum, and takes the other one.
	order.PutUint64(at, st.size)
	order.PutUint32(at[offNoteLen:], uint32(len(st.note)))
	n := offNote
	for i := range st.edge {
		n += copy(at[n:], st.edge[i][:])
	}
	n += copy(at[n:], st.note)
	order.PutUint32(at[offNoteSum:], standSum(at[:n]))
}

func standSum(at []byte) uint32 {
	return crc32.Update(crc32.Checksum(at[:offNoteSum], castagnoli), castagnoli, at[offNote:])
}

// readStands are the whole checkpoints in a header, older first.
func readStands(header []byte) (all []*stand) {
	for i := range 2 {
		if st := readStand(header[offNotes+i*page:][:page]); st != nil {
			all = append(all, st)
		}
	}
	slices.SortFunc(all, func(a, b *stand) int { return cmp.Compare(a.size, b.size) })
	return all
}

// nextSlot is the place of the older checkpoint of a header, or of none.
func nextSlot(header []byte) int {
	a, b := readStand(header[offNotes:][:page]), readStand(header[offNotes+page:][:page])
	if a != nil && (b == nil || b.size < a.size) {
		return 1
	}
	return 0
}

func readStand(at []byte) *stand {
	st := &stand{size: order.Uint64(at)}
	length, edge := int(order.Uint32(at[offNoteLen:])), bits.OnesCount64(st.size)*hashSize
	if st.size == 0 || st.size > checkpoint.MaxSize || length == 0 || length > maxNote {
		return nil
	}
	end := offNote + edge + length
	if order.Uint32(at[offNoteSum:]) != standSum(at[:end]) {
		return nil
	}
	for off := offNote; off < offNote+edge; off += hashSize {
		st.edge = append(st.edge, audit.Hash(at[off:off+hashSize]))
	}
	st.note = bytes.Clone(at[offNote+edge : end])
	return st
}

// check says what is wrong with st, by the key of its log if that is there.
func (st *stand) check(log string, key *checkpoint.Verifier) error {
	c, err := checkpoint.Unverified(st.note)
	if key != nil && err == nil {
		_, err = checkpoint.Open(st.note, key)
	}
	switch {
	case err != nil:
		return fmt.Errorf("its checkpoint of %d entries: %w", st.size, err)
	case c.Size != st.size || c.Root != st.tree().Root():
		return fmt.Errorf("its checkpoint of %d entries is not of the tree beside it", st.size)
	}
	return nil
}

// writeEdge puts the edge of the tree at its first record into the header of g. The
// word is stored last.
func (g *segment) writeEdge() {
	if !g.edged {
		return
	}
	var raw []byte
	for _, h := range g.edge {
		raw = append(raw, h[:]...)
	}
	copy(g.data[offHashes:], raw)
	word(g.data, offEdge).Store(edgeWord(uint32(len(g.edge)), raw))
}

func edgeWord(n uint32, hashes []byte) uint64 {
	return uint64(n+1) | uint64(crc32.Checksum(hashes, castagnoli))<<32
}

// readEdge is the edge in a header; ok is false where there is none.
func readEdge(header []byte, first uint64) (edge []audit.Hash, ok bool) {
	n := bits.OnesCount64(first)
	raw := header[offHashes : offHashes+n*hashSize]
	if word(header, offEdge).Load() != edgeWord(uint32(n), raw) {
		return nil, false
	}
	for ; len(raw) > 0; raw = raw[hashSize:] {
		edge = append(edge, audit.Hash(raw[:hashSize]))
	}
	return edge, true
}
