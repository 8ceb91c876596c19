package attest_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

func code(err error) fault.Code {
	var f *fault.Fault
	if errors.As(err, &f) {
		return f.Code
	}
	return ""
}

func attestUnix(t testing.TB, conn func(address string) *child) (*attest.Workload, *child) {
	t.Helper()
	l := unixListener(t)
	c := conn(l.Addr().String())
	w, err := newAttestor().Unix(acceptUnix(t, l))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, c
}

func self(t testing.TB) (path, sum string) {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := sha256.Sum256(b)
	return path, hex.EncodeToString(d[:])
}

func TestUnixReadsTheProcess(t *testing.T) {
	t.Parallel()
	w, c := attestUnix(t, func(a string) *child { return start(t, "dial unix "+a, nil) })
	exe, sum := self(t)
	if w.PID != c.Process.Pid || w.UID != os.Getuid() || w.GID != os.Getgid() || w.Exe != exe || len(w.Unreadable) > 0 {
		t.Errorf("got %+v, want process %d running %s", w, c.Process.Pid, exe)
	}
	me, zeros := strconv.Itoa(os.Getuid()), strings.Repeat("0", 64)
	for name, tc := range map[string]struct {
		want snapshot.RunsAs
		code fault.Code
	}{
		"nothing asked":  {snapshot.RunsAs{}, fault.NotAttested},
		"uid":            {snapshot.RunsAs{User: me}, ""},
		"gid":            {snapshot.RunsAs{Group: strconv.Itoa(os.Getgid())}, ""},
		"name":           {snapshot.RunsAs{User: w.User}, ""},
		"exe":            {snapshot.RunsAs{Exe: exe}, ""},
		"digest":         {snapshot.RunsAs{SHA256: sum}, ""},
		"all":            {snapshot.RunsAs{User: me, Exe: exe, SHA256: sum}, ""},
		"other uid":      {snapshot.RunsAs{User: "4242", Exe: exe}, fault.NotAttested},
		"unknown name":   {snapshot.RunsAs{User: "no-such-user"}, fault.NotAttested},
		"other gid":      {snapshot.RunsAs{User: me, Group: "4242"}, fault.NotAttested},
		"other exe":      {snapshot.RunsAs{User: me, Exe: "/bin/true"}, fault.NotAttested},
		"prefix of exe":  {snapshot.RunsAs{Exe: filepath.Dir(exe)}, fault.NotAttested},
		"other digest":   {snapshot.RunsAs{User: me, SHA256: zeros}, fault.NotAttested},
		"other unit":     {snapshot.RunsAs{User: me, Systemd: "orders.service"}, fault.NotAttested},
		"signed uid":     {snapshot.RunsAs{User: "+" + me}, fault.NotAttested},
		"uid past 32bit": {snapshot.RunsAs{User: strconv.FormatUint(1<<32+uint64(os.Getuid()), 10)}, fault.NotAttested},
	} {
		if name == "name" && w.User == "" {
			continue // no /etc/passwd
		}
		if got := code(w.Match(tc.want)); got != tc.code {
			t.Errorf("%s: got %q (%v), want %q", name, got, w.Match(tc.want), tc.code)
		}
	}
	if w.SHA256 != sum {
		t.Errorf("SHA256 is %q, want %q", w.SHA256, sum)
	}
}

func TestUnixKnowsAnotherUser(t *testing.T) {
	t.Parallel()
	needRoot(t)
	w, _ := attestUnix(t, func(a string) *child { return start(t, "dial unix "+a, as(4711, 4712)) })
	if w.UID != 4711 || w.GID != 4712 || w.User != "" {
		t.Errorf("got uid %d (%q), gid %d", w.UID, w.User, w.GID)
	}
	if err := w.Match(snapshot.RunsAs{User: "4711", Group: "4712"}); err != nil {
		t.Error(err)
	}
	if err := w.Match(snapshot.RunsAs{User: "root"}); code(err) != fault.NotAttested {
		t.Errorf("matched root: %v", err)
	}
}

func TestGoneWhenTheProcessEnds(t *testing.T) {
	t.Parallel()
	w, c := attestUnix(t, func(a string) *child { return start(t, "dial unix "+a, nil) })
	select {
	case <-w.Gone():
		t.Fatal("gone while it lives")
	case <-time.After(50 * time.Millisecond):
	}
	c.stop()
	select {
	case <-w.Gone():
	case <-time.After(5 * time.Second):
		t.Fatal("not gone after its end")
	}
}

func TestUnixRefusesAProcessThatEnded(t *testing.T) {
	t.Parallel()
	l := unixListener(t)
	c := start(t, "bye unix "+l.Addr().String(), nil)
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	w, err := newAttestor().Unix(acceptUnix(t, l))
	if code(err) != fault.NotAttested || !errors.Is(err, attest.ErrGone) {
		t.Fatalf("got %v, %v", w, err)
	}
}

func TestOldKernelRefusesARecycledNumber(t *testing.T) {
	t.Parallel()
	c := start(t, "hold", nil).ready(t)
	now := attest.Uptime() + 1
	for name, tc := range map[string]struct {
		pid, uid int
		began    uint64
		want     error
	}{
		"older than the question": {c.Process.Pid, os.Getuid(), now, nil},
		"began afterwards":        {c.Process.Pid, os.Getuid(), 1, attest.ErrGone},
		"another user's":          {c.Process.Pid, os.Getuid() + 1, now, attest.ErrGone},
	} {
		fd, err := attest.OpenOlder(tc.pid, tc.uid, tc.began)
		if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
		if fd >= 0 {
			_ = syscall.Close(fd)
		}
	}
}

func TestDigestRefusesAnotherProgramAfterwards(t *testing.T) {
	t.Parallel()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	l := unixListener(t)
	c := start(t, "exec unix "+l.Addr().String()+" "+sleep, nil).ready(t)
	w, err := newAttestor().Unix(acceptUnix(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := fmt.Fprintln(c.in, "go"); err != nil {
		t.Fatal(err)
	}
	exe := fmt.Sprintf("/proc/%d/exe", c.Process.Pid)
	for until := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if now, _ := os.Readlink(exe); now != w.Exe {
			break
		}
		if time.Now().After(until) {
			t.Fatal("the child did not exec")
		}
	}
	_, sum := self(t)
	if err := w.Match(snapshot.RunsAs{SHA256: sum}); code(err) != fault.SelectorBlind {
		t.Errorf("got %v", err)
	}
}

// copySelf is a copy of the test binary at a path that others can run.
func copySelf(t *testing.T, path string) {
	t.Helper()
	exe, _ := self(t)
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestDeletedExecutableNeverMatches(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "orders")
	copySelf(t, path)
	l := unixListener(t)
	start(t, "dial unix "+l.Addr().String(), func(c *exec.Cmd) { c.Path = path }).ready(t)
	conn := acceptUnix(t, l)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	// A file of the name that the kernel shows does not help.
	if err := os.WriteFile(path+" (deleted)", nil, 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := newAttestor().Unix(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, exe := range []string{path, path + " (deleted)"} {
		if err := w.Match(snapshot.RunsAs{Exe: exe}); code(err) != fault.SelectorBlind {
			t.Errorf("%s: got %v", exe, err)
		}
	}
	_, sum := self(t)
	if err := w.Match(snapshot.RunsAs{SHA256: sum}); err != nil {
		t.Errorf("its digest is known all the same: %v", err)
	}
}

func TestMountNamespaceDoesNotForgeAPath(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := t.TempDir()
	evil, orders := filepath.Join(dir, "evil"), filepath.Join(dir, "orders")
	copySelf(t, evil)
	if err := os.WriteFile(orders, []byte("the real one"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := unixListener(t)
	start(t, fmt.Sprintf("disguise %s %s %s", evil, orders, l.Addr()), func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	}).ready(t)
	w, err := newAttestor().Unix(acceptUnix(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", w.PID)); link != orders {
		t.Skipf("the disguise did not work: %q", link)
	}
	if err := w.Match(snapshot.RunsAs{Exe: orders}); code(err) != fault.SelectorBlind {
		t.Errorf("got %v", err)
	}
}

func TestUserText(t *testing.T) {
	t.Parallel()
	for uid, want := range map[int]string{0: "root (0)", 2_000_000_123: "2000000123"} {
		if got := attest.UserText(uid); got != want {
			t.Errorf("user %d is %q, want %q", uid, got, want)
		}
	}
}
