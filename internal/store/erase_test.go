package store_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/store/xtest"
)

// TestErasedIsInNoFile: not one byte of a person stays in a file of the database,
// neither in free space nor in the write-ahead log, however SQLite has moved its
// rows about before.
func TestErasedIsInNoFile(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := xtest.Open(t, file(filepath.Join(dir, "parley.db")), clock.System{})
	var people []string
	for i := range 3 {
		people = append(people, fmt.Sprintf("needle-%d-", i)+strings.Repeat("x", 240*i))
	}
	at := time.Now().Add(-time.Hour)
	index := 0
	for range 40 {
		var entries []audit.Entry
		for range 25 {
			entries = append(entries, xtest.OfPerson(t, "vm1", index, people[index%3], "https://a.example", at))
			index++
		}
		if err := s.Collect(t.Context(), "vm1", entries); err != nil {
			t.Fatal(err)
		}
	}
	// What SQLite moves from one page to another stays behind in the free space of the
	// first, whatever secure_delete says. Here it moves all rows.
	for i := range 3 {
		s.Exec(t, `UPDATE entry SET rowid = $1 + rowid * 7919 % 1009`, 10_000*(i+1))
	}
	for i, p := range people {
		if n := traces(t, dir, p); n == 0 {
			t.Fatalf("%s is nowhere before it is erased: the test looks at nothing", p)
		}
		erased, err := s.Erase(t.Context(), control.Person{Subject: p}, xtest.Event(audit.Erased))
		if err != nil || len(erased) != 1 || erased[0].Count < 300 {
			t.Fatalf("%v, %v", erased, err)
		}
		for j, other := range people {
			if n := traces(t, dir, other); (n == 0) != (j <= i) {
				t.Errorf("%s was erased: %s is %d times in the files", p, other, n)
			}
		}
	}
	if n := traces(t, dir, "192.0.2.7"); n != 0 {
		t.Errorf("the address is still %d times in the files", n)
	}
	xtest.Verified(t, s)
}

// traces is how often text is in the files of dir.
func traces(t testing.TB, dir, text string) (n int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) < 3 {
		t.Fatal(fmt.Sprint(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		n += bytes.Count(b, []byte(text)) + strings.Count(f, text)
	}
	return n
}

// Whoever was not erased stays, at whatever time the clock of a host was.
func TestErasureOfOneTakesNobodyElse(t *testing.T) {
	t.Parallel()
	s := xtest.Open(t, file(filepath.Join(t.TempDir(), "parley.db")), clock.System{})
	if _, err := s.Erase(t.Context(), control.Person{Subject: "alice"}, xtest.Event(audit.Erased)); err != nil {
		t.Fatal(err)
	}
	long := time.Date(1969, 7, 20, 20, 17, 0, 0, time.UTC)
	if err := s.Collect(t.Context(), "vm1", []audit.Entry{xtest.OfPerson(t, "vm1", 0, "bob", "https://a.example", long)}); err != nil {
		t.Fatal(err)
	}
	if found, err := s.Search(t.Context(), control.Filter{Subject: "bob"}); err != nil || len(found) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
}
