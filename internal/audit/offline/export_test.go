package offline_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/offline"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

const origin = "shop.example/vm-1"

var start = time.Date(2026, 11, 23, 20, 0, 0, 0, time.UTC)

// at is the time of event n of every log of these tests: one a second.
func at(n uint64) time.Time { return start.Add(time.Duration(n) * time.Second) }

// event is the body of event n; another one for every version.
func event(t testing.TB, n uint64, version string) []byte {
	t.Helper()
	body, err := audit.Encode(nil, &audit.Event{
		ID: fmt.Sprintf("%026d", n), Time: at(n), Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed, Reason: "allowed" + version,
		Call: &audit.CallFacts{End: "inbound", Protocol: "http", Listener: "orders.inbound", Method: "GET", Path: fmt.Sprintf("/orders/%d", n)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// A testLog is a log in memory, with its key.
type testLog struct {
	key     *checkpoint.Signer
	bodies  [][]byte
	leaves  []audit.Hash
	witness *checkpoint.Signer
}

func newLog(t testing.TB, size int) *testLog {
	t.Helper()
	l := &testLog{key: newKey(t, origin), witness: newKey(t, "witness.example/w1")}
	for n := range uint64(size) {
		l.add(event(t, n, ""))
	}
	return l
}

func newKey(t testing.TB, name string) *checkpoint.Signer {
	t.Helper()
	key, err := checkpoint.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (l *testLog) add(body []byte) {
	l.bodies = append(l.bodies, body)
	l.leaves = append(l.leaves, audit.LeafHash(body))
}

// rewrite gives the entries from first on another content, with all hashes.
func (l *testLog) rewrite(t testing.TB, first int) *testLog {
	t.Helper()
	again := &testLog{key: l.key, witness: l.witness, bodies: slices.Clone(l.bodies[:first]), leaves: slices.Clone(l.leaves[:first])}
	for n := first; n < len(l.bodies); n++ {
		again.add(event(t, uint64(n), " really"))
	}
	return again
}

// note is the signed checkpoint of the first size entries.
func (l *testLog) note(size int) []byte {
	var tree audit.Tree
	for _, leaf := range l.leaves[:size] {
		tree.Append(leaf)
	}
	return l.key.Sign(nil, uint64(size), tree.Root())
}

// export writes the first size entries to dir.
func (l *testLog) export(t testing.TB, dir string, size int) {
	t.Helper()
	w, err := tiles.OpenWriter(dir, origin)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for n := int(w.Size()); n < size; n++ {
		if err := w.Append(l.bodies[n], l.leaves[n]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(l.note(size)); err != nil {
		t.Fatal(err)
	}
}

func (l *testLog) given(pins ...offline.Pin) offline.Given {
	return offline.Given{Keys: []*checkpoint.Verifier{l.key.Verifier()}, Pins: pins}
}

// verify verifies, and wants an intact export or one that is not, with the wanted
// findings: each a part of one's text, in order.
func verify(t testing.TB, dir string, given offline.Given, want ...string) *offline.Report {
	t.Helper()
	r, err := offline.Export(t.Context(), dir, given)
	if err != nil {
		t.Fatal(err)
	}
	if r.Intact != (len(want) == 0) || r.Intact != strings.Contains(r.Text(), "\nintact: ") {
		t.Fatalf("intact %v:\n%s", r.Intact, r.Text())
	}
	if len(r.Findings) != len(want) {
		t.Fatalf("%d findings, want %d:\n%s", len(r.Findings), len(want), r.Text())
	}
	for i, w := range want {
		if got := r.Findings[i].String(); !strings.Contains(got, w) {
			t.Errorf("finding %d is\n%s\nwant\n%s", i, got, w)
		}
	}
	return r
}

func edit(t testing.TB, dir, name string, change func([]byte) []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// bundle makes a bundle of bodies.
func bundle(t testing.TB, bodies ...[]byte) []byte {
	t.Helper()
	var data []byte
	var err error
	for _, body := range bodies {
		if data, err = tiles.AppendEntry(data, body); err != nil {
			t.Fatal(err)
		}
	}
	return data
}

func TestIntactExports(t *testing.T) {
	t.Parallel()
	l := newLog(t, 700)
	for _, size := range []int{0, 1, 2, 255, 256, 257, 512, 700} {
		dir := t.TempDir()
		l.export(t, dir, size)
		r := verify(t, dir, l.given(offline.Pin{Name: "now", Note: l.note(size)}, offline.Pin{Name: "begin", Note: l.note(0)}, offline.Pin{Name: "half", Note: l.note(size / 2)}))
		if r.Verified != uint64(size) || r.Size != uint64(size) || !r.Signed || r.Origin != origin || len(r.Pins) != 3 {
			t.Errorf("size %d: %+v", size, r)
		}
		for _, p := range r.Pins {
			if !p.Consistent {
				t.Errorf("size %d: pin %+v", size, p)
			}
		}
		if size > 0 && (!r.First.Equal(at(0)) || !r.Last.Equal(at(uint64(size-1)))) {
			t.Errorf("size %d: from %s to %s", size, r.First, r.Last)
		}
	}
}

// One bit anywhere is found, and placed.
func TestOneBit(t *testing.T) {
	t.Parallel()
	const size = 300
	l := newLog(t, size)
	dir := t.TempDir()
	l.export(t, dir, size)
	verify(t, dir, l.given())
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		step := 1
		if info.Size() > 1000 {
			step = 151
		}
		for i := 0; i < int(info.Size()); i += step {
			flip := func(data []byte) []byte { data[i] ^= 1 << bit(i); return data }
			edit(t, dir, name, flip)
			r, err := offline.Export(t.Context(), dir, l.given())
			if err != nil {
				t.Fatalf("%s, byte %d: %v", name, i, err)
			}
			edit(t, dir, name, flip)
			checkBit(t, l, name, i, r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	verify(t, dir, l.given())
}

func bit(i int) int { return i % 8 }

// checkBit wants the finding for a bit of byte i of a file.
func checkBit(t *testing.T, l *testLog, name string, i int, r *offline.Report) {
	t.Helper()
	if r.Intact || len(r.Findings) == 0 {
		t.Fatalf("%s, byte %d: intact", name, i)
	}
	f := r.Findings[0]
	if name == "checkpoint" {
		if f.Kind != "signature" || r.Signed {
			t.Fatalf("%s, byte %d: %s", name, i, r.Text())
		}
		return
	}
	if f.File != name || len(r.Findings) != 1 {
		t.Fatalf("%s, byte %d: %s", name, i, r.Text())
	}
	first := uint64(0)
	if strings.Contains(name, "001") {
		first = 256
	}
	want := offline.Range{First: first + uint64(i/32), Last: first + uint64(i/32)}
	exact := true
	switch {
	case strings.HasPrefix(name, "tile/1/"):
		want = offline.Range{First: 0, Last: 255}
	case strings.HasPrefix(name, "tile/entries/"):
		n, offset := first, i
		for ; offset >= 2+len(l.bodies[n]); n++ {
			offset -= 2 + len(l.bodies[n])
		}
		want, exact = offline.Range{First: n, Last: n}, offset >= 2 // a length spoils what follows
	}
	if exact && *f.Entries != want || f.Entries.First != want.First {
		t.Fatalf("%s, byte %d: %s, want %s", name, i, r.Text(), want)
	}
	if !exact {
		return
	}
	if want.First > 0 && !f.After.Equal(at(want.First-1)) || want.Last+1 < uint64(len(l.bodies)) && !f.Before.Equal(at(want.Last+1)) {
		t.Fatalf("%s, byte %d: between %s and %s: %s", name, i, f.After, f.Before, r.Text())
	}
}

func TestTampering(t *testing.T) {
	t.Parallel()
	l := newLog(t, 700)
	pin := offline.Pin{Name: "pin", Note: l.note(700)}
	b := l.bodies
	tests := map[string]struct {
		spoil func(t *testing.T, dir string)
		want  []string
	}{
		"an event is another": {func(t *testing.T, dir string) {
			edit(t, dir, "tile/entries/001", func(data []byte) []byte { return bytes.Replace(data, []byte("/orders/300"), []byte("/orders/999"), 1) })
		}, []string{"entry 300, between 2026-11-23T20:04:59Z and 2026-11-23T20:05:01Z: its leaf hash is not in the tree (tile/entries/001)"}},
		"an event got a private part": {func(t *testing.T, dir string) {
			s := slices.Clone(b[:256])
			s[7] = append(bytes.TrimSuffix(s[7], []byte("}")), `,"private":{"subject":"mallory"}}`...)
			put(t, dir, "tile/entries/000", bundle(t, s...))
		}, []string{"entry 7, between 2026-11-23T20:00:06Z and 2026-11-23T20:00:08Z: its leaf hash is not in the tree"}},
		"an event got a space": {func(t *testing.T, dir string) {
			s := slices.Clone(b[:256])
			s[7] = append(bytes.Clone(s[7]), ' ')
			put(t, dir, "tile/entries/000", bundle(t, s...))
		}, []string{"entry 7, between"}},
		"the last event is another": {func(t *testing.T, dir string) {
			edit(t, dir, "tile/entries/002.p/188", func(data []byte) []byte { return bytes.Replace(data, []byte("/orders/699"), []byte("/orders/999"), 1) })
		}, []string{"entry 699, after 2026-11-23T20:11:38Z: its leaf hash is not in the tree (tile/entries/002.p/188)"}},
		"an event was taken out": {func(t *testing.T, dir string) {
			put(t, dir, "tile/entries/000", bundle(t, slices.Delete(slices.Clone(b[:256]), 9, 10)...))
		}, []string{"entries 9 to 255, between 2026-11-23T20:00:08Z and 2026-11-23T20:04:16Z: it was taken out: the one after it stands in its place (tile/entries/000)"}},
		"the last of a bundle was taken out": {func(t *testing.T, dir string) {
			put(t, dir, "tile/entries/000", bundle(t, b[:255]...))
		}, []string{"entry 255, between 2026-11-23T20:04:14Z and 2026-11-23T20:04:16Z: tile/entries/000: not the entries"}},
		"an event was put in": {func(t *testing.T, dir string) {
			put(t, dir, "tile/entries/000", bundle(t, slices.Insert(slices.Clone(b[:256]), 9, []byte("{}"))...))
		}, []string{"entries 9 to 255, between 2026-11-23T20:00:08Z and 2026-11-23T20:04:16Z: another entry was put in before it (tile/entries/000)"}},
		"an event was put behind": {func(t *testing.T, dir string) {
			put(t, dir, "tile/entries/002.p/188", bundle(t, append(slices.Clone(b[512:]), []byte("{}"))...))
		}, []string{"bytes follow the last one"}},
		"two events were swapped": {func(t *testing.T, dir string) {
			s := slices.Clone(b[:256])
			s[7], s[200] = s[200], s[7]
			put(t, dir, "tile/entries/000", bundle(t, s...))
		}, []string{"entry 7, between 2026-11-23T20:00:06Z and 2026-11-23T20:00:08Z: its leaf hash is not in the tree there: it is that of entry 200", "entry 200, between 2026-11-23T20:03:19Z and 2026-11-23T20:03:21Z: its leaf hash is not in the tree there: it is that of entry 7"}},
		"two bundles were swapped": {func(t *testing.T, dir string) {
			rename(t, dir, "tile/entries/000", "tile/x")
			rename(t, dir, "tile/entries/001", "tile/entries/000")
			rename(t, dir, "tile/x", "tile/entries/001")
		}, slices.Repeat([]string{"its leaf hash is not in the tree (tile/entries/00"}, 512)},
		"a bundle is gone": {func(t *testing.T, dir string) { remove(t, dir, "tile/entries/001") }, []string{"entries 256 to 511, between 2026-11-23T20:04:15Z and 2026-11-23T20:08:32Z: the bundle of the entries is missing (tile/entries/001)"}},
		"the last bundle is gone": {
			func(t *testing.T, dir string) { remove(t, dir, "tile/entries/002.p/188") },
			[]string{"entries 512 to 699, after 2026-11-23T20:08:31Z: the bundle of the entries is missing (tile/entries/002.p/188)"},
		},
		"a tile is gone":         {func(t *testing.T, dir string) { remove(t, dir, "tile/0/001") }, []string{"entries 256 to 511, between 2026-11-23T20:04:15Z and 2026-11-23T20:08:32Z: the tile is missing (tile/0/001)"}},
		"the last tile is gone":  {func(t *testing.T, dir string) { remove(t, dir, "tile/0/002.p/188") }, []string{"entries 512 to 699, after 2026-11-23T20:08:31Z: the tile is missing (tile/0/002.p/188)"}},
		"the upper tile is gone": {func(t *testing.T, dir string) { remove(t, dir, "tile/1/000.p/2") }, []string{"entries 0 to 511, before 2026-11-23T20:08:32Z: the tile is missing (tile/1/000.p/2)"}},
		"a bundle is cut":        {func(t *testing.T, dir string) { edit(t, dir, "tile/entries/001", half) }, []string{"to 511, between"}},
		"a tile is cut":          {func(t *testing.T, dir string) { edit(t, dir, "tile/0/001", half) }, []string{"entries 256 to 511, between 2026-11-23T20:04:15Z and 2026-11-23T20:08:32Z: tile/0/001: not the tile that belongs there: it has 4096 bytes"}},
		"the last tile is cut":   {func(t *testing.T, dir string) { edit(t, dir, "tile/0/002.p/188", half) }, []string{"entries 512 to 699, after 2026-11-23T20:08:31Z: tile/0/002.p/188: not the tile that belongs there: it has 3008 bytes"}},
		"the checkpoint is cut":  {func(t *testing.T, dir string) { edit(t, dir, "checkpoint", half) }, []string{"not a signed checkpoint"}},
		"another key signed":     {func(t *testing.T, dir string) { put(t, dir, "checkpoint", resign(t, l, 700)) }, []string{"no signature of a known key"}},
		"an older backup is back": {func(t *testing.T, dir string) {
			if err := errors.Join(os.RemoveAll(filepath.Join(dir, "tile")), os.Remove(filepath.Join(dir, "checkpoint"))); err != nil {
				t.Fatal(err)
			}
			l.export(t, dir, 600)
		}, []string{"entries 600 to 699, after 2026-11-23T20:09:59Z: the log had 700 entries when it was pinned, and here it has 600: what is here is older, or its end was cut off (pin)"}},
		"an older checkpoint is back": {func(t *testing.T, dir string) { put(t, dir, "checkpoint", l.note(600)) }, []string{
			"entries 512 to 599, after 2026-11-23T20:08:31Z: the tile is missing", "the bundle of the entries is missing", "the log had 700 entries when it was pinned",
		}},
		"the checkpoint is another's": {
			func(t *testing.T, dir string) { put(t, dir, "checkpoint", l.rewrite(t, 0).note(700)) },
			[]string{"the tiles and entries do not have the root that it says", "some were rewritten after they were pinned"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			l.export(t, dir, 700)
			tt.spoil(t, dir)
			verify(t, dir, l.given(pin), tt.want...)
		})
	}
}

func half(data []byte) []byte { return data[:len(data)/2] }

func put(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func rename(t testing.TB, dir, from, to string) {
	t.Helper()
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
}

// resign is the checkpoint of the log by another key of the same name.
func resign(t testing.TB, l *testLog, size int) []byte {
	t.Helper()
	c, err := checkpoint.Unverified(l.note(size))
	if err != nil {
		t.Fatal(err)
	}
	return newKey(t, origin).Sign(nil, c.Size, c.Root)
}

// Whoever has the database and the key can write a past that verifies; a pin of
// before tells.
func TestARewrittenTail(t *testing.T) {
	t.Parallel()
	l := newLog(t, 700)
	dir := t.TempDir()
	again := l.rewrite(t, 400)
	again.export(t, dir, 700)
	verify(t, dir, l.given()) // by itself it is intact
	r := verify(t, dir, l.given(
		offline.Pin{Name: "later", Note: l.note(650)}, offline.Pin{Name: "monday", Note: l.note(100)}, offline.Pin{Name: "tuesday", Note: l.note(390)}, offline.Pin{Name: "agent", Note: l.note(500)},
	), "entries 390 to 499, between 2026-11-23T20:06:29Z and 2026-11-23T20:08:20Z: some were rewritten after they were pinned, or there is a fork",
		"entries 390 to 649, between 2026-11-23T20:06:29Z and 2026-11-23T20:10:50Z: some were rewritten after")
	for i, want := range []bool{true, true, false, false} {
		if r.Pins[i].Consistent != want {
			t.Errorf("%+v", r.Pins[i])
		}
	}
	// Of the same size: a fork.
	verify(t, dir, l.given(offline.Pin{Name: "pin", Note: l.note(700)}), "entries 0 to 699: some were rewritten")
}

// Whoever rewrites entries and their tile, and no more, is found one level up.
func TestARewrittenTile(t *testing.T) {
	t.Parallel()
	l := newLog(t, 700)
	dir, other := t.TempDir(), t.TempDir()
	l.export(t, dir, 700)
	l.rewrite(t, 256).export(t, other, 700)
	for _, name := range []string{"tile/0/001", "tile/entries/001"} {
		data, err := os.ReadFile(filepath.Join(other, name))
		if err != nil {
			t.Fatal(err)
		}
		put(t, dir, name, data)
	}
	verify(t, dir, l.given(), "entries 256 to 511, between 2026-11-23T20:04:15Z and 2026-11-23T20:08:32Z: their tile is not the one whose hash the tile above has")
}

func TestPrunedEntries(t *testing.T) {
	t.Parallel()
	l := newLog(t, 700)
	for _, n := range []int{0, 1, 2, 500, 600, 601, 699} {
		l.bodies[n] = nil
	}
	dir := t.TempDir()
	l.export(t, dir, 700)
	r := verify(t, dir, l.given(offline.Pin{Name: "pin", Note: l.note(300)}))
	if r.Pruned != 7 || r.Verified != 693 || !slices.Equal(r.PrunedRanges, []offline.Range{{First: 0, Last: 2}, {First: 500, Last: 500}, {First: 600, Last: 601}, {First: 699, Last: 699}}) {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(r.Text(), "693 of 700 entries recomputed, 7 pruned, of which the leaf hashes are there (entries 0 to 2, entry 500, entries 600 to 601, 1 more ranges)") {
		t.Error(r.Text())
	}
	if !r.First.Equal(at(3)) || !r.Last.Equal(at(698)) {
		t.Errorf("from %s to %s", r.First, r.Last)
	}
	// The leaf hash is all that is left, and cannot be changed either.
	edit(t, dir, "tile/0/000", func(data []byte) []byte { data[33] ^= 1; return data })
	verify(t, dir, l.given(), "entries 0 to 255, before 2026-11-23T20:04:16Z: their tile is not the one")
	edit(t, dir, "tile/0/000", func(data []byte) []byte { data[33] ^= 1; return data })
	edit(t, dir, "tile/0/002.p/188", func(data []byte) []byte { data[187*32] ^= 1; return data })
	verify(t, dir, l.given(), "do not have the root that it says")
	// Nor can its place: what is next to it is still found where it is.
	edit(t, dir, "tile/0/002.p/188", func(data []byte) []byte { data[187*32] ^= 1; return data })
	edit(t, dir, "tile/entries/001", func(data []byte) []byte { return bytes.Replace(data, []byte("/orders/501"), []byte("/orders/999"), 1) })
	verify(t, dir, l.given(), "entry 501, between 2026-11-23T20:08:19Z and 2026-11-23T20:08:22Z: its leaf hash is not in the tree")
}

func TestWitnesses(t *testing.T) {
	t.Parallel()
	l := newLog(t, 300)
	dir := t.TempDir()
	l.export(t, dir, 300)
	given := l.given()
	given.Keys = append(given.Keys, l.witness.Witness())
	verify(t, dir, given, "the witness witness.example/w1 has not cosigned it")
	n, err := checkpoint.Open(l.note(300), l.key.Verifier())
	if err != nil {
		t.Fatal(err)
	}
	cosigned, err := l.witness.Cosign(n, at(1000))
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "checkpoint", cosigned)
	given.Pins = []offline.Pin{{Name: "pin", Note: cosigned}}
	r := verify(t, dir, given)
	want := offline.Cosignature{Witness: "witness.example/w1", Time: at(1000)}
	if !slices.Equal(r.Cosignatures, []offline.Cosignature{want}) || !slices.Equal(r.Pins[0].Cosignatures, []offline.Cosignature{want}) || !strings.Contains(r.Text(), "seen by witness.example/w1 at 2026-11-23T20:16:40Z") {
		t.Error(r.Text())
	}
	twin := newKey(t, "witness.example/w1").Witness()
	both := given
	both.Keys = append(slices.Clone(given.Keys), twin)
	verify(t, dir, both, "the witness witness.example/w1 has not cosigned it with the key "+twin.String())
	edit(t, dir, "checkpoint", func(data []byte) []byte {
		if at := len(data) - 20; data[at] == 'A' { // another letter of base64
			data[at] = 'B'
		} else {
			data[at] = 'A'
		}
		return data
	})
	given.Pins = nil
	r = verify(t, dir, given, "the signature of the checkpoint is wrong: that of witness.example/w1")
	if r.Signed {
		t.Error("signed")
	}
}

// What was asked cannot be answered: an error, and no word on the log.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	l := newLog(t, 300)
	dir := t.TempDir()
	l.export(t, dir, 300)
	other := newLog(t, 3)
	foreign := &testLog{key: newKey(t, "shop.example/vm-2")}
	both := l.given(offline.Pin{Name: "p", Note: foreign.note(0)})
	both.Keys = append(both.Keys, foreign.key.Verifier())
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx   context.Context
		dir   string
		given offline.Given
		want  error
	}{
		"no key":                 {t.Context(), dir, offline.Given{}, offline.ErrNoKey},
		"a witness's key":        {t.Context(), dir, offline.Given{Keys: []*checkpoint.Verifier{l.key.Witness()}}, offline.ErrNoKey},
		"no directory":           {t.Context(), dir + "x", l.given(), fs.ErrNotExist},
		"an empty directory":     {t.Context(), t.TempDir(), l.given(), fs.ErrNotExist},
		"a pin of an unknown":    {t.Context(), dir, l.given(offline.Pin{Name: "p", Note: other.note(3)}), offline.ErrPin},
		"a pin of another log":   {t.Context(), dir, both, offline.ErrPin},
		"a pin that is none":     {t.Context(), dir, l.given(offline.Pin{Name: "p", Note: []byte("x")}), offline.ErrPin},
		"somebody does not wait": {cancelled, dir, l.given(), context.Canceled},
	} {
		if r, err := offline.Export(tt.ctx, tt.dir, tt.given); !errors.Is(err, tt.want) || r != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	// A pin that was tampered with is worth a word.
	bad := bytes.Replace(l.note(300), []byte("\n300\n"), []byte("\n301\n"), 1)
	verify(t, dir, l.given(offline.Pin{Name: "p", Note: bad}), "the signature of the checkpoint is wrong")
}

// A checkpoint that speaks of more entries than there are in the world does not
// keep anybody waiting.
func TestAGiantCheckpoint(t *testing.T) {
	t.Parallel()
	l := newLog(t, 700)
	dir := t.TempDir()
	l.export(t, dir, 700)
	put(t, dir, "checkpoint", l.key.Sign(nil, checkpoint.MaxSize-1, audit.LeafHash(nil)))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := offline.Export(ctx, dir, l.given())
	if err != nil || r.Intact || !r.More || len(r.Findings) != 1000 {
		t.Errorf("%v: %+v", err, r)
	}
	if text := r.Text(); strings.Count(text, "\n") > 30 || !strings.Contains(text, "and 980 more, which --json lists") || !strings.Contains(text, "at least 1000 are wrong") {
		t.Error(text)
	}
}

// Three levels, so that there is a full tile above full tiles.
func TestAHighTree(t *testing.T) {
	t.Parallel()
	const size = 66_000
	l := &testLog{key: newKey(t, origin)}
	for n := range uint64(size) {
		l.add(fmt.Appendf(nil, `{"time":%q,"n":%d}`, at(n).Format(time.RFC3339), n))
	}
	dir := t.TempDir()
	l.export(t, dir, size)
	r := verify(t, dir, l.given(offline.Pin{Name: "pin", Note: l.note(40_000)}))
	if r.Verified != size {
		t.Errorf("%d verified", r.Verified)
	}
	for _, tt := range []struct {
		name string
		at   int
		want string
	}{
		{"tile/2/000.p/1", 0, "entries 0 to 65535, before 2026-11-24T14:12:16Z: hash 0 of their tile was changed; the entries are what the root says (tile/2/000.p/1)"},
		{"tile/1/000", 3 * 32, "entries 768 to 1023, between 2026-11-23T20:12:47Z and 2026-11-23T20:17:04Z: hash 3 of their tile was changed; the entries are what the root says (tile/1/000)"},
		{"tile/1/001.p/1", 31, "entries 65536 to 65791, between 2026-11-24T14:12:15Z and 2026-11-24T14:16:32Z: hash 0 of their tile was changed"},
		{"tile/0/255", 32, "entry 65281, between 2026-11-24T14:08:00Z and 2026-11-24T14:08:02Z: hash 1 of their tile was changed"},
		{"tile/0/256", 32, "entry 65537, between 2026-11-24T14:12:16Z and 2026-11-24T14:12:18Z: hash 1 of their tile was changed"},
		{"tile/0/257.p/208", 32, "entry 65793, between 2026-11-24T14:16:32Z and 2026-11-24T14:16:34Z: hash 1 of their tile was changed"},
		{"tile/entries/100", 60, "entry 25601, between 2026-11-24T03:06:40Z and 2026-11-24T03:06:42Z: its leaf hash is not in the tree"},
	} {
		flip := func(data []byte) []byte { data[tt.at] ^= 1; return data }
		edit(t, dir, tt.name, flip)
		verify(t, dir, l.given(), tt.want)
		edit(t, dir, tt.name, flip)
	}
	// Several at once, at each level of the edge.
	for _, name := range []string{"tile/2/000.p/1", "tile/1/001.p/1", "tile/0/257.p/208"} {
		edit(t, dir, name, func(data []byte) []byte { data[0] ^= 1; return data })
	}
	verify(t, dir, l.given(), "entry 65792", "entries 65536 to 65791", "entries 0 to 65535")
}

func TestTwentyThousand(t *testing.T) {
	t.Parallel()
	l := newLog(t, 20_000)
	dir := t.TempDir()
	l.export(t, dir, 20_000)
	began := time.Now()
	r := verify(t, dir, l.given(offline.Pin{Name: "pin", Note: l.note(12_345)}))
	if took := time.Since(began); r.Verified != 20_000 || took > 5*time.Second {
		t.Errorf("%d in %s", r.Verified, took)
	}
}

// Names of files and of others are harmless in a terminal.
func TestTextIsHarmless(t *testing.T) {
	t.Parallel()
	r := &offline.Report{Kind: "export", Findings: []offline.Finding{{Kind: "pin", File: "a\x1b[2Jb\u009b\u2028c\U000e0001\r", What: "\xff"}}}
	if text := r.Text(); !strings.Contains(text, `a\x1b[2Jb\u009b\u2028c\U000e0001\r`) || !strings.Contains(text, `\xff`) {
		t.Errorf("%q", text)
	}
}

func FuzzExport(f *testing.F) {
	l := newLog(f, 3)
	whole := bundle(f, l.bodies...)
	var hashes []byte
	for _, leaf := range l.leaves {
		hashes = append(hashes, leaf[:]...)
	}
	f.Add(l.note(3), hashes, whole)
	f.Add(l.note(3), hashes[:64], whole[:100])
	f.Add(l.note(2), hashes, binary.BigEndian.AppendUint16(nil, 3))
	f.Fuzz(func(t *testing.T, signed, hashes, entries []byte) {
		dir := t.TempDir()
		for _, d := range []string{"tile/0/000.p", "tile/entries/000.p"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		put(t, dir, "checkpoint", signed)
		put(t, dir, "tile/0/000.p/3", hashes)
		put(t, dir, "tile/entries/000.p/3", entries)
		r, err := offline.Export(t.Context(), dir, l.given())
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Text()
		if r.Intact && (!bytes.Equal(signed, l.note(3)) || !bytes.Equal(entries, whole) && r.Pruned == 0) && r.Size != 0 {
			t.Fatalf("intact:\n%s", r.Text())
		}
	})
}
