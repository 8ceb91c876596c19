package audit_test

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"golang.org/x/mod/sumdb/tlog"
)

// The vectors of the Certificate Transparency reference implementation, which
// every RFC 6962 library tests itself by.
func TestLeafHashVectors(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]string{
		"":                 "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"\x00":             "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
		"\x10":             "0298d122906dcfc10892cb53a73992fc5b9f493ea4c9badb27b791b4127a7fe7",
		"\x20\x21":         "07506a85fd9dd2f120eb694f86011e5bb4662e5c415a62917033d4a9624487e7",
		"\x30\x31":         "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
		"\x40\x41\x42\x43": "4271a26be0d8a84f0bd54c8c302e7cb3a3b5d1fa6780a40bcce2873477dab658",
	} {
		got := audit.LeafHash([]byte(data))
		if hex.EncodeToString(got[:]) != want {
			t.Errorf("LeafHash(%x) = %x, want %s", data, got, want)
		}
	}
}

func TestTreeVectors(t *testing.T) {
	t.Parallel()
	var tree audit.Tree
	roots := []string{"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
	for i, leaf := range []string{"", "\x00", "\x10", "\x20\x21", "\x30\x31", "\x40\x41\x42\x43", "\x50\x51\x52\x53\x54\x55\x56\x57", "\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f"} {
		if root := tree.Root(); i < len(roots) && hex.EncodeToString(root[:]) != roots[i] {
			t.Errorf("root of %d leaves: %x", i, root)
		}
		tree.Append(audit.LeafHash([]byte(leaf)))
	}
	root := tree.Root()
	if got, want := hex.EncodeToString(root[:]), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"; got != want {
		t.Errorf("root of 8 leaves = %s, want %s", got, want)
	}
}

// memory is a tlog.HashReader over a slice of stored hashes.
type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range indexes {
		out = append(out, m[i])
	}
	return out, nil
}

func TestTreeAgreesWithTlog(t *testing.T) {
	t.Parallel()
	var stored memory
	var tree audit.Tree
	for n := range int64(300) {
		want, err := tlog.TreeHash(n, stored)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.Root(); tlog.Hash(got) != want || tree.Size() != uint64(n) {
			t.Fatalf("size %d: root %x of %d leaves, tlog has %s", n, got, tree.Size(), want)
		}
		body := fmt.Appendf(nil, "entry %d", n)
		hashes, err := tlog.StoredHashes(n, body, stored)
		if err != nil {
			t.Fatal(err)
		}
		var got []tlog.Hash
		for _, h := range tree.AppendNodes(nil, audit.LeafHash(body)) {
			got = append(got, tlog.Hash(h))
		}
		if !slices.Equal(got, hashes) {
			t.Fatalf("entry %d: nodes %v, tlog stores %v", n, got, hashes)
		}
		stored = append(stored, hashes...)
	}
}

func TestNewIDIsAULID(t *testing.T) {
	t.Parallel()
	// The time part of the ULID specification's example, 01ARZ3NDEK.
	id := audit.NewID(time.UnixMilli(1469922850259))
	if len(id) != 26 || id[:10] != "01ARZ3NDEK" {
		t.Errorf("NewID = %s, want 01ARZ3NDEK and 16 more", id)
	}
	if rest := strings.Trim(id, "0123456789ABCDEFGHJKMNPQRSTVWXYZ"); rest != "" {
		t.Errorf("NewID = %s holds %q", id, rest)
	}
	if a, b := audit.NewID(time.UnixMilli(1e12)), audit.NewID(time.UnixMilli(1e12+1)); a >= b {
		t.Errorf("%s of an earlier millisecond sorts behind %s", a, b)
	}
}

func TestNewIDIsUniqueAcrossGoroutines(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen, now := map[string]bool{}, time.Unix(1, 0)
	for range 8 {
		wg.Go(func() {
			for range 500 {
				id := audit.NewID(now)
				mu.Lock()
				if seen[id] {
					t.Errorf("%s twice", id)
				}
				seen[id] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func BenchmarkNewID(b *testing.B) {
	now := time.Unix(1, 0)
	b.ReportAllocs()
	for b.Loop() {
		audit.NewID(now)
	}
}

func BenchmarkLeafHash(b *testing.B) {
	body, err := audit.Encode(nil, typical(b))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		audit.LeafHash(body)
	}
}
