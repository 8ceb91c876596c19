package store_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/store"
)

// childPath names the database of a child of TestKilledServerLosesNothing.
const childPath = "PARLEY_TEST_STORE_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		if err := child(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child changes the database and says so on its output, until it is killed.
func child(path string) error {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Config{Path: path, Host: "host1", Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler)})
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

func TestKilledServerLosesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "parley.db")
	var acknowledged []string
	for range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childPath+"="+path)
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
	s := open(t, func() (*store.Store, error) { return store.Open(t.Context(), config(path, clock.System{})) })
	events := mustVerify(t, s)[s.LogName()]
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
