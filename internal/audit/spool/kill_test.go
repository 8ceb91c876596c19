package spool_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit/spool"
)

// childDir names the log of a child of TestKilledProcessLosesNothing.
const childDir = "PARLEY_TEST_SPOOL_CHILD"

func TestMain(m *testing.M) {
	for env, child := range map[string]func(dir string) error{childDir: child, childWipes: wiping} {
		dir := os.Getenv(env)
		if dir == "" {
			continue
		}
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child records from several goroutines and acknowledges each event on its
// output once Record has returned, until it is killed.
func child(dir string) error {
	s, err := spool.Open(config(dir))
	if err != nil {
		return err
	}
	go s.Run(context.Background())
	failed := make(chan error)
	for g := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d-%d", os.Getpid(), g, i)
				if err := s.Record(event(id)); err != nil {
					failed <- err
					return
				}
				fmt.Println(id) // one write: whole or not at all
			}
		}()
	}
	return <-failed
}

func TestKilledProcessLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var acknowledged []string
	for round := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		kill := sync.OnceFunc(func() {
			time.AfterFunc(time.Duration(rand.IntN(60_000))*time.Microsecond, func() { cmd.Process.Kill() })
		})
		n := 0
		for ; lines.Scan(); n++ {
			acknowledged = append(acknowledged, lines.Text())
			kill()
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 || n == 0 {
			t.Fatalf("round %d: %d events, %v", round, n, err)
		}
		report, err := spool.Verify(dir) // before recovery
		verified(t, report, err)
	}
	s := open(t, dir)
	got := map[string]int{}
	entries := all(t, s, 0)
	for _, id := range ids(t, s, 0, entries) {
		got[id]++
	}
	for _, id := range acknowledged {
		if got[id] != 1 {
			t.Errorf("%s was acknowledged and is there %d times", id, got[id])
		}
	}
	if len(got) != len(entries) {
		t.Errorf("%d entries, %d ids: some twice", len(entries), len(got))
	}
	for id, n := range got {
		if strings.Contains(id, ":") {
			t.Errorf("%d gaps after kills: %s", n, id)
		}
	}
	t.Logf("%d acknowledged, %d there", len(acknowledged), len(entries))
	report, err := s.Verify()
	verified(t, report, err)
}
