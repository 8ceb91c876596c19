package control_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/fault"
)

func TestListenReplacesOnlyADeadSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "parley")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "api.sock")

	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := control.Listen(path); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.SocketPath {
		t.Errorf("beside a server that answers: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after kill -9
	l.Close()
	again, err := control.Listen(path)
	if err != nil {
		t.Fatalf("over a dead socket: %v", err)
	}
	again.Close()
}

func TestListenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"file": file, "directory": dir, "no directory": filepath.Join("no", "such", "d"), "long": "/" + strings.Repeat("x", 120),
	} {
		if _, err := control.Listen(path); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.SocketPath {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "keep" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}
