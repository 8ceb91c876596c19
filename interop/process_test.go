package interop

import (
	"fmt"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

const processMesh = `
trust_domain: interop.example
services:
  shopper:
    runs_as: {exe: %[1]s, user: root}
    calls: [{to: site, listen: "127.0.0.1:%[2]d"}, {to: lines, listen: "127.0.0.1:%[3]d"}]
  site:
    runs_as: {exe: %[4]s}
    inbound: {listen: "127.0.0.1:%[5]d", app: %[6]q}
    allow: [{from: [shopper]}]
  lines:
    runs_as: {exe: %[4]s}
    inbound: {listen: "127.0.0.1:%[7]d", app: %[6]q, protocol: tcp}
    allow: [{from: [shopper]}]
`

// TestAnotherUserAndAnotherProgramAreRefused holds outbound listener and Workload
// API to who connects, not to where from.
func TestAnotherUserAndAnotherProgramAreRefused(t *testing.T) {
	curl, nginx, app := need(t, "curl"), need(t, "nginx", "/usr/sbin/nginx"), startNginx(t)
	http, tcp := freePort(t), freePort(t)
	r := start(t, fmt.Sprintf(processMesh, curl, http, tcp, nginx, freePort(t), app, freePort(t)))
	other := filepath.Join(shortDir(t), "curl2")
	run(t, "cp", curl, other)
	run(t, "chmod", "755", other)

	for name, port := range map[string]int{"http": http, "tcp": tcp} {
		url := fmt.Sprintf("http://127.0.0.1:%d/public/a", port)
		if got := run(t, curl, "-s", url); !strings.Contains(got, "nginx saw") {
			t.Fatalf("%s: the service itself got %q", name, got)
		}
		for who, c := range map[string]struct {
			exe string
			uid int
			run func() (string, error)
		}{
			"another user": {curl, nobody(t), func() (string, error) { return asUser(t, "nobody", curl, "-s", "-i", url) }},
			"another program": {other, 0, func() (string, error) {
				out, err := exec.Command(other, "-s", "-i", url).CombinedOutput()
				return string(out), err
			}},
		} {
			t.Run(name+", "+who, func(t *testing.T) {
				began := time.Now()
				got, err := c.run()
				if strings.Contains(got, "nginx") {
					t.Fatalf("it got through:\n%s", got)
				}
				if name == "tcp" && (err == nil || got != "") {
					t.Errorf("it got %q, %v; want a reset", got, err)
				}
				e := r.in(t).events(1, api.ListEventsParams{Action: string(audit.ProcessRefused), Since: began})[0]
				if e.Outcome != audit.Denied || e.Caller == nil || e.Caller.Exe != c.exe || e.Caller.UID == nil || *e.Caller.UID != c.uid {
					t.Errorf("on record: %s, %+v; want %s of user %d", e.Outcome, e.Caller, c.exe, c.uid)
				}
				if name == "http" && (!strings.Contains(got, " 403 ") || header(got, "Parley-Decision") != e.ID) {
					t.Errorf("it got, with %s on record:\n%s", e.ID, got)
				}
			})
		}
	}
	workloadAPIRefuses(t, r)
}

// workloadAPIRefuses asks for an identity as nobody's process.
func workloadAPIRefuses(t *testing.T, r *running) {
	mine := ownClient(t)
	for who, c := range map[string]struct {
		uid int
		cmd *exec.Cmd
	}{
		"another user":    {nobody(t), exec.Command(need(t, "runuser", "/sbin/runuser"), "-u", "nobody", "--", mine)},
		"another program": {0, exec.Command(mine)},
	} {
		t.Run("workload api, "+who, func(t *testing.T) {
			began := time.Now()
			c.cmd.Dir = "/"
			c.cmd.Env = []string{"PARLEY_INTEROP_ROLE=fetch", "SPIFFE_ENDPOINT_SOCKET=unix://" + r.socket()}
			got, err := c.cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(got), "PermissionDenied") {
				t.Errorf("%v\n%s", err, got)
			}
			e := r.in(t).events(1, api.ListEventsParams{Action: string(audit.WorkloadRefused), Since: began})[0]
			if e.Outcome != audit.Denied || e.Caller == nil || e.Caller.Exe != mine || e.Caller.UID == nil || *e.Caller.UID != c.uid {
				t.Errorf("on record: %s, %+v; want %s of user %d", e.Outcome, e.Caller, mine, c.uid)
			}
		})
	}
}

// nobody is the number of the user nobody.
func nobody(t *testing.T) int {
	t.Helper()
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	return uid
}
