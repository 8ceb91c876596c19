package xtest

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
)

// childPlace names the database of a child of testKilled.
const childPlace = "PARLEY_TEST_STORE_CHILD"

// IsChild says that Main would run no tests.
func IsChild() bool { return os.Getenv(childPlace) != "" }

// Main runs the tests of a package that runs the suite, whose children it is too.
// TestMain calls it.
func Main(m *testing.M) int {
	place := os.Getenv(childPlace)
	if place == "" {
		return m.Run()
	}
	fmt.Fprintln(os.Stderr, child(place))
	return 1
}

// child changes the database and says so on its output, until it is killed. Its
// error is why it could not.
func child(place string) error {
	ctx := context.Background()
	p := Place{Path: place}
	if strings.HasPrefix(place, "postgres:") {
		p = Place{URL: place}
	}
	s, err := p.Open(ctx, clock.System{})
	if err != nil {
		return err
	}
	head := int64(0)
	if r, err := s.Head(ctx); err == nil {
		head = r.Number
	}
	for ; ; head++ {
		e := &audit.Event{ID: fmt.Sprintf("%d-%d", os.Getpid(), head), Action: audit.ConfigApplied, Outcome: audit.Success}
		if err := s.Apply(ctx, &control.Revision{Text: []byte("x")}, head, e); err != nil {
			return err
		}
		fmt.Println(e.ID)
	}
}

// A server that is killed loses nothing that it acknowledged.
func testKilled(t *testing.T, db Database) {
	p := db(t)
	var acknowledged []string
	for range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childPlace+"="+p.Path+p.URL)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() { // it has begun
			t.Fatal("the child said nothing")
		}
		acknowledged = append(acknowledged, lines.Text())
		time.AfterFunc(time.Duration(rand.IntN(50_000))*time.Microsecond, func() { cmd.Process.Kill() })
		for lines.Scan() {
			acknowledged = append(acknowledged, lines.Text())
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child was not killed: %v", err)
		}
	}
	s := Open(t, p, clock.System{})
	events := Verified(t, s)[s.LogName()]
	head, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if uint64(head.Number) != events || events < uint64(len(acknowledged)) {
		t.Errorf("revision %d and %d events, %d were acknowledged", head.Number, events, len(acknowledged))
	}
	for _, id := range acknowledged {
		if _, err := s.Event(t.Context(), id); err != nil {
			t.Errorf("acknowledged and lost: %v", err)
		}
	}
}
