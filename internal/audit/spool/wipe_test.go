package spool_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/spool"
)

const subject = "alice@shop.example"

// ofPerson is an event of alice.
func ofPerson(id string) *audit.Event {
	e := event(id)
	e.Private = new(audit.Private)
	e.Private.Hold(subject, "192.0.2.7:4711")
	return e
}

// mentions is how often the files of dir name alice.
func mentions(t testing.TB, dir string) (n int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		n += bytes.Count(data, []byte(subject))
	}
	return n
}

// TestDiscardWipes: of what was collected, no file says of whom it was, and every hash
// is the one that it was.
func TestDiscardWipes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	stop := run(t, s)
	const n = 900 // of which some are in their canonical encoding: see pack
	for i := range n {
		e := ofPerson(fmt.Sprint("e", i))
		if i%3 == 0 {
			e.Private = nil
		}
		if err := s.Record(e); err != nil {
			t.Fatal(err)
		}
	}
	before := all(t, s, 0)
	if got := mentions(t, dir); got != n*2/3 {
		t.Fatalf("%d mentions before", got)
	}
	report, err := s.Verify()
	root := verified(t, report, err).Root
	first := report.First
	wipe := func(to uint64, left int) {
		t.Helper()
		if err := s.Discard(to); err != nil {
			t.Fatal(err)
		}
		if got := mentions(t, dir); got != left {
			t.Errorf("%d mentions after %d, want %d", got, to, left)
		}
		report, err := s.Verify()
		if r := verified(t, report, err); r.Root != root {
			t.Errorf("root %x, want %x", r.Root, root)
		}
		first = report.First
	}
	wipe(1, n*2/3)
	wipe(2, n*2/3-1)
	wipe(300, n*2/3-200)
	wipe(300, n*2/3-200)
	wipe(1<<60, 0)
	same := func() {
		t.Helper()
		for _, e := range all(t, s, first) {
			was := before[e.Index]
			if e.Leaf != was.Leaf || audit.LeafHash(e.Body) != was.Leaf || !bytes.Equal(audit.Committed(e.Body), audit.Committed(was.Body)) {
				t.Fatalf("entry %d:\n%s\n%s", e.Index, e.Body, was.Body)
			}
		}
	}
	same()
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	same()
	report, err = s.Verify()
	if r := verified(t, report, err); r.Root != root {
		t.Errorf("after a restart: root %x, want %x", r.Root, root)
	}
}

// TestTornWipe: whatever part of a step of wiping is on the disk, every record is whole.
func TestTornWipe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, fmt.Sprintf("%020d.seg", 0))
	var images [][]byte
	var taking bool
	s, err := spool.OpenSyncing(config(dir), func(data []byte) error {
		if taking {
			image, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			images = append(images, image)
		}
		return spool.Sync(data)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	const n = 20 // some in canonical encoding
	for i := range n {
		if err := s.Record(ofPerson(fmt.Sprint("e", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := spool.Seal(s); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	images, taking = [][]byte{before}, true
	if err := s.Discard(n); err != nil {
		t.Fatal(err)
	}
	if len(images) != 4 || mentions(t, dir) != 0 {
		t.Fatalf("%d images, %d mentions", len(images), mentions(t, dir))
	}
	for i, from := range images[:3] {
		to := images[i+1]
		var differ []int
		for at := 0; at < len(from); at += 8 {
			if !bytes.Equal(from[at:at+8], to[at:at+8]) {
				differ = append(differ, at)
			}
		}
		for _, cut := range differ {
			cut := cut
			if i != 1 { // a word is stored at once
				cut += rand.IntN(8)
			}
			for _, torn := range [][]byte{slices.Concat(to[:cut], from[cut:]), slices.Concat(from[:cut], to[cut:])} {
				if records, lost, ok := spool.Inspect(torn, 0, 0); records != n || lost != 0 || !ok {
					t.Fatalf("step %d torn at %d: %d records, %d lost, %v", i, cut, records, lost, ok)
				}
				if cut != differ[len(differ)/2] {
					continue
				}
				opens(t, torn, n)
			}
		}
	}
}

// opens a log whose one file is image, which holds n records.
func opens(t *testing.T, image []byte, n int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d.seg", 0)), image, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	report, err := s.Verify()
	if r := verified(t, report, err); r.Next != uint64(n) || len(s.Repaired()) > 0 {
		t.Errorf("%+v, repaired %v", r, s.Repaired())
	}
	if err := s.Discard(uint64(n)); err != nil || mentions(t, dir) != 0 {
		t.Errorf("%v, %d mentions", err, mentions(t, dir))
	}
	report, err = spool.Verify(dir)
	verified(t, report, err)
}

// childWipes is the log of a child of TestKilledWiping.
const childWipes = "PARLEY_TEST_SPOOL_WIPES"

// wiping records events of alice and discards what is sealed, until it is killed.
func wiping(dir string) error {
	s, err := spool.Open(config(dir))
	if err != nil {
		return err
	}
	go s.Run(context.Background())
	for {
		for range 50 {
			if err := s.Record(ofPerson(audit.NewID(time.Now()))); err != nil {
				return err
			}
		}
		if err := s.Wait(context.Background(), s.Next()-1); err != nil {
			return err
		}
		fmt.Println("wiping")
		if err := s.Discard(s.Next() - 10); err != nil {
			return err
		}
	}
}

func TestKilledWiping(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for round := range 10 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childWipes+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 8)
		_, err = out.Read(line)
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		if err != nil || !strings.HasPrefix(string(line), "wiping"[:1]) {
			t.Fatalf("round %d: %q, %v", round, line, err)
		}
		report, err := spool.Verify(dir) // before recovery
		verified(t, report, err)
	}
	s := open(t, dir)
	if len(s.Repaired()) > 0 {
		t.Errorf("repaired: %v", s.Repaired())
	}
	if err := s.Discard(s.Next()); err != nil {
		t.Fatal(err)
	}
	if n := mentions(t, dir); n != 0 {
		t.Errorf("%d mentions", n)
	}
	report, err := s.Verify()
	verified(t, report, err)
}
