package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// An executable that its own service may write is found when the revision comes into
// force, before anything connects, and no longer once it is mended.
func TestWritableExecutableIsFound(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("gives files to other users, which only root may")
	}
	const owner = "nobody"
	dir := t.TempDir()
	exe := filepath.Join(dir, "orders")
	for _, err := range []error{os.WriteFile(exe, nil, 0o755), os.Chmod(dir, 0o755), os.Chown(exe, 65534, 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("trust_domain: node.example\nservices:\n  orders:\n    runs_as: {user: %s, exe: %q}\n", owner, exe)
	m := startNode(t, shortDir(t), text)
	m.apply(text)
	found := func() bool {
		s, err := m.api.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.Findings, func(f api.Finding) bool {
			return f.Code == string(fault.WritableByItself) && strings.Contains(f.Message, exe)
		})
	}
	if !found() {
		t.Error("it is not found without a connection")
	}
	if err := os.Chown(exe, 0, 0); err != nil {
		t.Fatal(err)
	}
	if found() {
		t.Error("it is mended and still there")
	}
}
