package agent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// The user whose process listens on an application's socket is the service's, when
// the listener opens and at each connection.
func TestAppSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "pa")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	a := &Agent{}
	port := func(user string) error {
		return a.appPort(snapshot.Service{Inbound: &snapshot.Inbound{App: "unix:" + path}, RunsAs: snapshot.RunsAs{User: user}})
	}
	self, other := strconv.Itoa(os.Getuid()), strconv.Itoa(os.Getuid()+1)
	if err := port(other); err != nil {
		t.Errorf("nobody listens yet: %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for user, want := range map[string]fault.Code{self: "", "": "", other: fault.AppPortHeld, "no-such-user-here": fault.AppPortHeld} {
		if got := codeOf(port(user)); got != want {
			t.Errorf("the port of user %q: %q, want %q", user, got, want)
		}
		if user == "" {
			continue
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if got := codeOf(appConn(user, c)); got != want {
			t.Errorf("a connection of user %q: %q, want %q", user, got, want)
		}
		c.Close()
	}
}

// An update that waits for credentials keeps nobody in whose time without TLS is over:
// what is looked at every two seconds does not wait for it.
func TestLookingDoesNotWaitForAnUpdate(t *testing.T) {
	t.Parallel()
	a := &Agent{}
	a.applying.Lock()
	defer a.applying.Unlock()
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		a.lookAtPorts(t.Context())
	}()
	select {
	case <-looked:
	case <-time.After(5 * time.Second):
		t.Error("it waits until the update is applied")
	}
}

// codeOf is the code of the fault that err is, empty for none.
func codeOf(err error) fault.Code {
	var f *fault.Fault
	errors.As(err, &f)
	if f == nil {
		return ""
	}
	return f.Code
}

func TestListenUnix(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		make func(t *testing.T, path string) // what is there before
		ok   bool
	}{
		{"nothing", func(*testing.T, string) {}, true},
		{"no directory yet", func(t *testing.T, path string) { os.Remove(filepath.Dir(path)) }, true},
		{"a dead socket", func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			l.Close()
		}, true},
		{"a live socket", func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, false},
		{"a file", func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a link", func(t *testing.T, path string) {
			if err := os.Symlink("/etc/passwd", path); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "pa")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			path := filepath.Join(dir, "d", "s")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			tt.make(t, path)
			before, _ := os.Lstat(path) // nil where there is nothing
			l, err := listenUnix(path)
			if (err == nil) != tt.ok {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				if all := fault.All(err); len(all) != 1 || all[0].Code != fault.SocketPath || all[0].Hint == "" {
					t.Errorf("got %v", err)
				}
				if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
					t.Errorf("what was there is gone: %v", err)
				}
				return
			}
			defer l.Close()
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
	_, err := listenUnix("/tmp/" + strings.Repeat("x", 120))
	if all := fault.All(err); len(all) != 1 || all[0].Code != fault.SocketPath {
		t.Errorf("a path that is too long: %v", err)
	}
}
