package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/keys"
	storetest "github.com/parleymesh/parley/internal/store/xtest"
)

// passfile is a file with the password, as PGPASSFILE names it.
func passfile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(path, []byte("*:*:*:parley:"+strings.ReplaceAll(password, ":", `\:`)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// bare is a database's URL without the password.
func (c *cluster) bare(database string) string {
	return fmt.Sprintf("postgres://parley@127.0.0.1:%d/%s", c.port, database)
}

// TestTryOnPostgres is the tour of calls with everything that it records in a
// PostgreSQL, twice, so that the second run finds what the first has left.
func TestTryOnPostgres(t *testing.T) {
	c := newCluster(t)
	url, dir := c.bare(c.create("")), filepath.Join(shortDir(t), "data")
	for range 2 {
		cmd := exec.Command(parleyBinary, "dev", "--try", "--port-base", "-1", "--dir", dir, "--store", url)
		cmd.Env = append(os.Environ(), "PGPASSFILE="+passfile(t))
		said, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(said), "as expected, in ") || bytes.Contains(said, []byte("FAIL")) {
			t.Fatalf("%v\n%s", err, said)
		}
		t.Logf("%s", said)
		nothingIn(t, dir, said)
	}
}

// nothingIn looks for the password in what was said and what was written, and for a
// database in SQLite.
func nothingIn(t *testing.T, dir string, said []byte) {
	t.Helper()
	if bytes.Contains(said, []byte("c4n4ry")) {
		t.Errorf("the password is in:\n%s", said)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte("c4n4ry")) {
			t.Errorf("the password is in %s", path)
		}
		if strings.HasPrefix(d.Name(), "parley.db") && d.Name() != "parley.db.lock" {
			t.Errorf("there is a %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestDevOnPostgres goes through what happens to a server and to its database, in
// one life of a mesh: each part finds what the ones before have left.
func TestDevOnPostgres(t *testing.T) {
	c := newCluster(t)
	curl, app, out := need(t, "curl"), startNginx(t), freePort(t)
	database := c.create("")
	mesh := fmt.Sprintf(nginxMesh, curl, out, freePort(t), app)
	r := &running{t: t, dir: shortDir(t), flags: []string{"--store", c.bare(database)}, env: []string{"PGPASSFILE=" + passfile(t)}}
	r.start(mesh)
	call := func(id string) {
		t.Helper()
		got := run(t, curl, "-s", "-H", "X-Request-Id: "+id, fmt.Sprintf("http://127.0.0.1:%d/public/a", out))
		if !strings.Contains(got, "nginx saw") {
			t.Errorf("%s: curl got %q", id, got)
		}
	}
	revision := func() int64 {
		st, err := r.api.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return st.Revision
	}
	call("first")
	r.both("first")

	t.Run("a second server is refused", func(t *testing.T) {
		cmd := exec.Command(parleyBinary, "dev", "--file", r.file(), "--dir", filepath.Join(shortDir(t), "other"), "--store", c.bare(database))
		cmd.Env = append(os.Environ(), r.env...)
		said, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(string(said), fmt.Sprintf("process %d, since", r.cmd.Process.Pid)) ||
			!strings.Contains(string(said), "error[PAR-3005]") {
			t.Errorf("%v\n%s", err, said)
		}
	})
	t.Run("the database is killed", func(t *testing.T) {
		r := r.in(t)
		c.kill()
		for i := range 20 {
			call(fmt.Sprint("away-", i))
		}
		if err := os.WriteFile(filepath.Join(r.dir, "next.yaml"), []byte(strings.Replace(mesh, "/headers]", "/headers, /more]", 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		said, err := r.parley("apply", "-f", filepath.Join(r.dir, "next.yaml"))
		if err == nil || !strings.Contains(said, "error[PAR-3012]") || !strings.Contains(said, "hint: see whether it runs: pg_isready ") {
			t.Errorf("apply without a database: %v\n%s", err, said)
		}
		c.start()
		r.until("an apply works again", func() bool { _, err := r.parley("apply", "-f", filepath.Join(r.dir, "next.yaml")); return err == nil })
		for i := range 20 {
			r.both(fmt.Sprint("away-", i))
		}
	})
	before := revision() // and the server is killed
	call("before-kill")
	r.kill()
	r.launch()
	if after := revision(); after < before {
		t.Errorf("revision %d, and it was %d", after, before)
	}
	r.both("before-kill")
	call("after-kill")
	r.both("after-kill")
	if v, err := r.api.Verify(t.Context()); err != nil || !v.Intact {
		t.Errorf("the log does not verify: %+v, %v", v, err)
	}
	replaced(t, r, c, database)
	nothingIn(t, r.dir, []byte(r.log.String()))
}

// unsealed is what a file of the data directory has.
func unsealed(t *testing.T, r *running, file, purpose string) []byte {
	t.Helper()
	master, _, err := keys.OpenMaster(filepath.Join(r.dir, "data", "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := master.Open(filepath.Join(r.dir, "data", file), purpose)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// replaced stops the process until another server has taken its database. When it
// goes on it has to end by itself.
func replaced(t *testing.T, r *running, c *cluster, database string) {
	if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Another server is one with the same data directory, restored elsewhere.
	key, err := checkpoint.ParseSigner(unsealed(t, r, "audit.key", "key of the audit log"))
	if err != nil {
		t.Fatal(err)
	}
	place := storetest.Place{URL: c.url(database), Key: key, Secret: unsealed(t, r, "audit.hash", "secret of the audit log's keyed hashes")}
	next, err := place.Open(t.Context(), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- next.Hold(ctx) }()
	defer func() { stop(); <-ended }()
	before := storetest.Verified(t, next)
	if err := r.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	select {
	case err = <-r.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the server that lost its database goes on")
	}
	r.cmd.Process = nil // it has ended as it should: stop does nothing
	var exit *exec.ExitError
	if said := r.log.String(); !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(said, string(fault.StoreBusy)) {
		t.Errorf("it ended with %v:\n%s", err, said)
	}
	if diff := cmp.Diff(before, storetest.Verified(t, next)); diff != "" {
		t.Errorf("it wrote after it was replaced:\n%s", diff)
	}
}
