package offline_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/offline"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

// proof is the file that proves entry index of the first size ones.
func (l *testLog) proof(t testing.TB, size, index int) *tiles.ProofFile {
	t.Helper()
	dir := t.TempDir()
	l.export(t, dir, size)
	d, err := tiles.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	hashes, err := tiles.Inclusion(context.Background(), d.Loader(uint64(size)), uint64(size), uint64(index))
	if err != nil {
		t.Fatal(err)
	}
	return &tiles.ProofFile{Event: l.bodies[index], Index: uint64(index), Hashes: hashes, Checkpoint: l.note(size)}
}

func TestProof(t *testing.T) {
	t.Parallel()
	l := newLog(t, 700)
	for _, size := range []int{1, 2, 257, 700} {
		for _, index := range []int{0, size / 2, size - 1} {
			data := l.proof(t, size, index).AppendText(nil)
			r, err := offline.Proof(data, "event.tlog-proof", l.given(offline.Pin{Name: "pin", Note: l.note(size)}))
			if err != nil || !r.Intact || *r.Index != uint64(index) || r.Size != uint64(size) || !bytes.Equal(r.Event, l.bodies[index]) || !r.First.Equal(at(uint64(index))) || !r.Pins[0].Consistent {
				t.Errorf("entry %d of %d: %+v, %v", index, size, r, err)
			}
			if text := r.Text(); !strings.Contains(text, `"path": "/orders/`) || !strings.Contains(text, "\nintact: ") {
				t.Error(text)
			}
		}
	}
}

func TestProofsThatDoNotHold(t *testing.T) {
	t.Parallel()
	l := newLog(t, 300)
	for name, tt := range map[string]struct {
		change func(p *tiles.ProofFile)
		want   string
	}{
		"another event":      {func(p *tiles.ProofFile) { p.Event = event(t, 77, " really") }, "entry 77: the event is not in the tree there"},
		"another index":      {func(p *tiles.ProofFile) { p.Index = 76 }, "entry 76: the event is not in the tree there"},
		"beyond the log":     {func(p *tiles.ProofFile) { p.Index = 300 }, "entry 300: the event is not in the tree there"},
		"a hash too few":     {func(p *tiles.ProofFile) { p.Hashes = p.Hashes[1:] }, "entry 77: the event is not in the tree there"},
		"another hash":       {func(p *tiles.ProofFile) { p.Hashes[3][0] ^= 1 }, "entry 77: the event is not in the tree there"},
		"another checkpoint": {func(p *tiles.ProofFile) { p.Checkpoint = l.note(299) }, "entry 77: the event is not in the tree there"},
		"another key":        {func(p *tiles.ProofFile) { p.Checkpoint = resign(t, l, 300) }, "no signature of a known key"},
		"another size":       {func(p *tiles.ProofFile) { p.Checkpoint = bytes.Replace(p.Checkpoint, []byte("300"), []byte("301"), 1) }, "the signature of the checkpoint is wrong"},
	} {
		p := l.proof(t, 300, 77)
		tt.change(p)
		r, err := offline.Proof(p.AppendText(nil), "p", l.given())
		if err != nil || r.Intact || !strings.Contains(r.Text(), tt.want) || !strings.Contains(r.Text(), "NOT INTACT") {
			t.Errorf("%s: %v\n%+v", name, err, r)
		}
	}
	// A pin with another root, of the same size.
	r, err := offline.Proof(l.proof(t, 300, 77).AppendText(nil), "p", l.given(offline.Pin{Name: "pin", Note: l.rewrite(t, 200).note(300)}))
	if err != nil || r.Intact || r.Pins[0].Consistent || !strings.Contains(r.Text(), "the log was forked or rewritten (pin)") {
		t.Errorf("%v\n%s", err, r.Text())
	}
}

// No bit of a proof can be flipped unseen.
func TestOneBitOfAProof(t *testing.T) {
	t.Parallel()
	l := newLog(t, 300)
	good := l.proof(t, 300, 77).AppendText(nil)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << bit(i)
		if r, err := offline.Proof(bad, "p", l.given()); err == nil && r.Intact {
			t.Fatalf("byte %d: intact\n%s", i, bad)
		}
	}
}

func TestProofsWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	l := newLog(t, 300)
	p := l.proof(t, 300, 77)
	good := p.AppendText(nil)
	pruned, unsigned := *p, *p
	pruned.Event, unsigned.Checkpoint = nil, []byte("nothing\n")
	for name, tt := range map[string]struct {
		data  []byte
		given offline.Given
		want  error
	}{
		"no key":             {good, offline.Given{}, offline.ErrNoKey},
		"no proof":           {[]byte("x"), l.given(), tiles.ErrProofFile},
		"no event":           {pruned.AppendText(nil), l.given(), offline.ErrPruned},
		"no checkpoint":      {unsigned.AppendText(nil), l.given(), checkpoint.ErrMalformed},
		"a pin of elsewhere": {good, l.given(offline.Pin{Name: "p", Note: newLog(t, 1).note(1)}), offline.ErrPin},
		"a pin of earlier":   {good, l.given(offline.Pin{Name: "p", Note: l.note(299)}), offline.ErrPin},
	} {
		if r, err := offline.Proof(tt.data, "p", tt.given); !errors.Is(err, tt.want) || r != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

// An event is shown as it was recorded, and harmless.
func TestAnEventWithControls(t *testing.T) {
	t.Parallel()
	l := &testLog{key: newKey(t, origin)}
	const body = "{\"reason\":\"a\\u001b\u009b[2J\u2028\u202eb\"}"
	l.add([]byte(body))
	l.add([]byte("\x1b no JSON"))
	r, err := offline.Proof(l.proof(t, 2, 0).AppendText(nil), "p", l.given())
	if err != nil || !r.Intact {
		t.Fatal(r, err)
	}
	var got, want map[string]string
	if err := errors.Join(json.Unmarshal(r.Event, &got), json.Unmarshal([]byte(body), &want)); err != nil || got["reason"] != want["reason"] {
		t.Errorf("%s, %v", r.Event, err)
	}
	if text := r.Text(); !strings.Contains(text, `a\u001b\u009b[2J\u2028\u202eb`) {
		t.Error(text)
	}
	r, err = offline.Proof(l.proof(t, 2, 1).AppendText(nil), "p", l.given())
	if err != nil || !r.Intact || r.Event != nil || strings.Contains(r.Text(), "\x1b") {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestParseKeys(t *testing.T) {
	t.Parallel()
	log, witness := newKey(t, origin), newKey(t, "w")
	text := "# keys of the log\n\n  " + log.Verifier().String() + "  \n" + witness.Witness().String()
	keys, err := offline.ParseKeys([]byte(text))
	if err != nil || len(keys) != 2 || keys[0].String() != log.Verifier().String() || !keys[1].Witness() {
		t.Errorf("%v, %v", keys, err)
	}
	for _, bad := range []string{"", "# none", "x", text + "\nx", strings.Repeat("#", 1<<17)} {
		if _, err := offline.ParseKeys([]byte(bad)); !errors.Is(err, offline.ErrKeys) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if _, err := offline.ParseKeys([]byte(text + "\nx")); !strings.Contains(err.Error(), "line 5") {
		t.Error(err)
	}
}

func FuzzProof(f *testing.F) {
	l := newLog(f, 3)
	f.Add(l.proof(f, 3, 1).AppendText(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := offline.Proof(data, "p", l.given())
		if err != nil {
			return
		}
		_ = r.Text()
		if r.Intact && !bytes.Contains(data, []byte("index 1\n")) {
			t.Fatalf("intact:\n%s", data)
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte("# keys\n\n" + newKey(f, origin).Verifier().String()))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := offline.ParseKeys(text)
		if err == nil && (len(keys) == 0 || !bytes.Contains(text, []byte(keys[0].String()))) {
			t.Fatalf("%q: %v", text, keys)
		}
	})
}
