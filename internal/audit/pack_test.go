package audit_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/identity"
)

var update = flag.Bool("update", false, "write the golden files")

func pack(t testing.TB, e *audit.Event) []byte {
	t.Helper()
	packed, err := audit.Pack(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// TestPackedStays: what lies packed in a log after an upgrade is rendered as before,
// or its leaf hash would not be that of its body any more.
func TestPackedStays(t *testing.T) {
	t.Parallel()
	e := full(t, always("an-ordinary-value"))
	e.Time, e.Call.Path, e.Message = time.Unix(1795435507, 123456000), strings.Repeat("é", 2000), "a\nb\xff"
	file := filepath.Join("testdata", "packed.v1.hex")
	if *update {
		if err := os.WriteFile(file, []byte(hex.EncodeToString(pack(t, e))+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := hex.DecodeString(strings.TrimSpace(string(old)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := audit.Render(nil, packed)
	if err != nil || !bytes.Equal(got, reference(t, e, 2048, 512)) {
		t.Errorf("%v\n got %s\nwant %s", err, got, reference(t, e, 2048, 512))
	}
}

func TestPackIsBounded(t *testing.T) {
	t.Parallel()
	e := full(t, always(strings.Repeat("\x01", 70000)))
	id, err := identity.ParseID("spiffe://shop.example/" + strings.Repeat("a", 2048-len("spiffe://shop.example/")))
	if err != nil {
		t.Fatal(err)
	}
	e.Caller.ID, e.Callee.ID, e.Actor.ID = id, id, id
	if n := len(pack(t, e)); n > audit.MaxEvent {
		t.Errorf("%d bytes", n)
	}
}

func TestPackAllocatesNothing(t *testing.T) {
	e, buf := typical(t), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := audit.Pack(buf, e); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// TestRenderRefuses what is cut off anywhere but between two fields of the event.
func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	packed := pack(t, typical(t))
	for n := range len(packed) {
		if got, err := audit.Render([]byte("x"), packed[:n]); err != nil && (!errors.Is(err, audit.ErrPacked) || string(got) != "x") {
			t.Fatalf("%d bytes: %q, %v", n, got, err)
		} else if err == nil && !json.Valid(got[1:]) {
			t.Fatalf("%d bytes: %s", n, got)
		}
	}
	for name, bad := range map[string]string{
		"nothing": "", "another version": "\x02", "no such field": "\x01\xff", "field 0": "\x01\x00",
		"an end": "\x01\x01", "no end": "\x01\x0b", "an object in an object": "\x01\x0b\x0b\x01\x01",
		"a string beyond the end": "\x01\x02\x05abc", "a length without end": "\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
		"no time": "\x01\x03", "a time of no year": "\x01\x03\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x00", "two seconds of nanoseconds": "\x01\x03\x02\x80\xa8\xd6\xb9\x07",
	} {
		if got, err := audit.Render(nil, []byte(bad)); !errors.Is(err, audit.ErrPacked) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// FuzzRender: whatever bytes it is given, it neither panics nor makes anything but
// one JSON object within its bound.
func FuzzRender(f *testing.F) {
	f.Add([]byte{})
	f.Add(pack(f, &audit.Event{}))
	f.Add(pack(f, typical(f)))
	f.Add(pack(f, full(f, always("a\"\xff\u2028"))))
	f.Fuzz(func(t *testing.T, packed []byte) {
		got, err := audit.Render(nil, packed)
		if err != nil {
			return
		}
		if len(got) > audit.MaxEvent || !json.Valid(got) {
			t.Errorf("%d bytes: %s", len(got), got)
		}
	})
}

func BenchmarkPack(b *testing.B) {
	e, buf := typical(b), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := audit.Pack(buf, e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRender(b *testing.B) {
	packed, buf := pack(b, typical(b)), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := audit.Render(buf, packed); err != nil {
			b.Fatal(err)
		}
	}
}
