package tiles_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

// proofOf is a proof of entry 5 of 300, and the root.
func proofOf(t testing.TB) *tiles.ProofFile {
	t.Helper()
	m := &memory{tiles: map[place][]byte{}}
	edge := grow(t, m, nil, 300, 300)
	hashes, err := tiles.Inclusion(t.Context(), m.load, 300, 5)
	if err != nil {
		t.Fatal(err)
	}
	return &tiles.ProofFile{Event: []byte(`{"schema":1}`), Index: 5, Hashes: hashes, Checkpoint: logKey(t, origin).Sign(nil, 300, edge.Root())}
}

func TestProofFile(t *testing.T) {
	t.Parallel()
	p := proofOf(t)
	want := "c2sp.org/tlog-proof@v1\nextra eyJzY2hlbWEiOjF9\nindex 5\n"
	for _, h := range p.Hashes {
		want += base64.StdEncoding.EncodeToString(h[:]) + "\n"
	}
	want += "\n" + string(p.Checkpoint)
	text := p.AppendText(nil)
	if string(text) != want {
		t.Errorf("%s\nwant\n%s", text, want)
	}
	got, err := tiles.ParseProofFile(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got); diff != "" {
		t.Error(diff)
	}
	// An entry alone in its log, and one without its body.
	alone := &tiles.ProofFile{Index: 0, Checkpoint: p.Checkpoint}
	if got, err := tiles.ParseProofFile(alone.AppendText(nil)); err != nil || cmp.Diff(alone, got) != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseProofFileIsStrict(t *testing.T) {
	t.Parallel()
	good := string(proofOf(t).AppendText(nil))
	if _, err := tiles.ParseProofFile([]byte(good)); err != nil {
		t.Fatal(err)
	}
	hash := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, text := range map[string]string{
		"empty":                "",
		"another version":      strings.Replace(good, "@v1", "@v2", 1),
		"no checkpoint":        good[:strings.Index(good, "\n\n")],
		"no index":             strings.Replace(good, "index 5\n", "", 1),
		"leading zero":         strings.Replace(good, "index 5\n", "index 05\n", 1),
		"negative":             strings.Replace(good, "index 5\n", "index -5\n", 1),
		"beyond any tree":      strings.Replace(good, "index 5\n", fmt.Sprintf("index %d\n", uint64(checkpoint.MaxSize)), 1),
		"index first":          strings.Replace(good, "extra eyJzY2hlbWEiOjF9\nindex 5\n", "index 5\nextra eyJzY2hlbWEiOjF9\n", 1),
		"extra twice":          strings.Replace(good, "extra eyJzY2hlbWEiOjF9\n", strings.Repeat("extra eyJzY2hlbWEiOjF9\n", 2), 1),
		"no extra data":        strings.Replace(good, "eyJzY2hlbWEiOjF9", "", 1),
		"extra without base64": strings.Replace(good, "eyJzY2hlbWEiOjF9", "%%%%", 1),
		"bits behind":          strings.Replace(good, "eyJzY2hlbWEiOjF9", "eyJzY2hlbWEiOjF=", 1),
		"too long an event":    strings.Replace(good, "eyJzY2hlbWEiOjF9", base64.StdEncoding.EncodeToString(make([]byte, audit.MaxEvent+1)), 1),
		"carriage return":      strings.Replace(good, "eyJzY2hlbWEiOjF9", "eyJzY2hlbWEiOjF9\r", 1),
		"short hash":           strings.Replace(good, "index 5\n", "index 5\nAAAA\n", 1),
		"too many hashes":      strings.Replace(good, "index 5\n", "index 5\n"+strings.Repeat(hash+"\n", 65), 1),
		"too long":             good + strings.Repeat("x", tiles.MaxProof),
	} {
		if p, err := tiles.ParseProofFile([]byte(text)); !errors.Is(err, tiles.ErrProofFile) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func FuzzParseProofFile(f *testing.F) {
	f.Add(proofOf(f).AppendText(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := tiles.ParseProofFile(data)
		if err == nil && !bytes.Equal(p.AppendText(nil), data) {
			t.Fatalf("it reads, and is written otherwise:\n%s", data)
		}
	})
}
