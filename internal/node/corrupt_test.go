package node_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/node"
)

// A mesh file that changed inside the database would be another policy.
func TestChangedRevisionIsNotRun(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	text := "trust_domain: node.example\nservices: {a: {runs_as: {exe: /nobody/there}}}\n# marked\n"
	cfg := config(t, dir, text)
	n, err := node.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	c, err := api.New(cfg.APISocket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: text}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	stop := func(n *node.Node) {
		t.Helper()
		ctx, done := context.WithTimeout(context.Background(), 20*time.Second)
		defer done()
		if err := n.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	}
	stop(n)

	path := filepath.Join(dir, "parley.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.ReplaceAll(whole, []byte("/nobody/there"), []byte("/nobody/theft"))
	if bytes.Equal(whole, changed) {
		t.Fatal("the text is not in the database as it is")
	}
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	n, err = node.Start(t.Context(), cfg)
	var f *fault.Fault
	if !errors.As(err, &f) || f.Code != fault.StoreCorrupt {
		t.Errorf("a changed revision: %v", err)
	}
	if err == nil {
		stop(n)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, side := range []string{"-wal", "-shm"} { // of the start that was refused
		if err := os.Remove(path + side); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if n, err = node.Start(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	stop(n)
}
