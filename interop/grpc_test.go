package interop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// suite builds a program of interop/suites, once.
func suite(t *testing.T, pkg string) string {
	t.Helper()
	bin := filepath.Join(filepath.Dir(parleyBinary), strings.ReplaceAll(pkg, "/", "_"))
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	build := exec.Command("go", "build", "-o", bin, pkg)
	build.Dir = "suites"
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return bin
}

// background runs a program until the test ends.
func background(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // it was killed
		if t.Failed() {
			t.Logf("%s said:\n%.4000s", filepath.Base(name), said.String())
		}
	})
}

// grpcMesh is one server of gRPC, its client, and another program that no rule
// names.
const grpcMesh = `
trust_domain: interop.example
services:
  caller:
    runs_as: {exe: %[1]s}
    calls: [{to: callee, listen: "127.0.0.1:%[3]d"}]
  stranger:
    runs_as: {exe: %[2]s}
    calls: [{to: callee, listen: "127.0.0.1:%[4]d"}]
  callee:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[5]d", app: "127.0.0.1:%[6]d", app_protocol: http2}
    allow:
      - {from: [caller]}
`

// interopCases are those of gRPC's interop suite that need no particular
// environment (doc/interop-test-descriptions.md of gRPC).
var interopCases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
	"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response",
	"status_code_and_message", "special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service",
}

// TestGRPCInterop runs gRPC's own client against its own server through two
// sidecars, and as a caller that no rule names.
func TestGRPCInterop(t *testing.T) {
	client, server := suite(t, "google.golang.org/grpc/interop/client"), suite(t, "google.golang.org/grpc/interop/server")
	stranger := filepath.Join(shortDir(t), "stranger")
	run(t, "cp", client, stranger)
	out, strange, app := freePort(t), freePort(t), freePort(t)
	background(t, server, "-port", fmt.Sprint(app))
	r := start(t, fmt.Sprintf(grpcMesh, client, stranger, out, strange, freePort(t), app))
	passed := 0
	for _, name := range interopCases {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			run(t, "timeout", "30", client, "--server_host=127.0.0.1", fmt.Sprintf("--server_port=%d", out), "--use_tls=false", "--test_case="+name)
			recordedGRPC(t, r.in(t), name, began)
			passed++
		})
	}
	t.Logf("%d of %d", passed, len(interopCases))

	t.Run("refused", func(t *testing.T) {
		r, began := r.in(t), time.Now()
		said, err := exec.Command("timeout", "30", stranger, "--server_host=127.0.0.1", fmt.Sprintf("--server_port=%d", strange), "--use_tls=false", "--test_case=empty_unary").CombinedOutput()
		events := r.events(2, api.ListEventsParams{Action: string(audit.Call), Since: began})
		for _, e := range events {
			if e.Call.Status != 200 || e.Call.GRPCStatus == nil || *e.Call.GRPCStatus != 7 {
				t.Errorf("on record at the %s end: %d, %v", e.Call.End, e.Call.Status, e.Call.GRPCStatus)
			}
		}
		i := slices.IndexFunc(events, func(e *audit.Event) bool { return e.Call.End == "inbound" })
		if i < 0 || events[i].Outcome != audit.Denied {
			t.Fatalf("no denial among %d events", len(events))
		}
		if err == nil || !strings.Contains(string(said), "PermissionDenied") || !strings.Contains(string(said), events[i].ID) {
			t.Errorf("without PermissionDenied or decision %s: %v\n%s", events[i].ID, err, said)
		}
	})
}

// recordedGRPC holds the events of one case to what its calls ended with.
func recordedGRPC(t *testing.T, r *running, name string, began time.Time) {
	t.Helper()
	want := map[string]struct{ status, failure string }{
		"status_code_and_message": {"2", ""}, "special_status_message": {"2", ""},
		"unimplemented_method": {"12", ""}, "unimplemented_service": {"12", ""},
		"cancel_after_first_response": {"none", "client_closed"},
		"cancel_after_begin":          {"", ""}, // perhaps before anything was sent
		"timeout_on_sleeping_server":  {"", ""}, // perhaps too; and both sides' timers end it
	}
	w, ok := want[name]
	if !ok {
		w.status = "0"
	}
	query := api.ListEventsParams{Action: string(audit.Call), Since: began}
	if w.status == "" {
		if n := len(r.list(query)); n > 2 {
			t.Errorf("%d events of one call", n)
		}
		return
	}
	events := r.events(2, query)
	if len(events)%2 != 0 {
		t.Errorf("%d events, not one at each end", len(events))
	}
	for _, e := range events {
		status := "none"
		if e.Call.GRPCStatus != nil {
			status = fmt.Sprint(*e.Call.GRPCStatus)
		}
		if e.Outcome != audit.Allowed || status != w.status || e.Call.Error != w.failure {
			t.Errorf("on record at the %s end: %s, status %s, %q; want %s, %q", e.Call.End, e.Outcome, status, e.Call.Error, w.status, w.failure)
		}
		if protection := e.TLS; e.Call.End == "inbound" && (protection == nil || protection.ALPN != "h2") {
			t.Errorf("between the sidecars: %+v", protection)
		}
	}
}

// knownFailing are the cases that the suite itself lists as failing for grpc-go's
// server, whoever stands before it.
var knownFailing = []string{"**/unary/multiple-requests", "**/unary/no-request", "**/server-stream/multiple-requests", "**/server-stream/no-request"}

// TestConnectConformance runs the conformance suite of connectrpc.com for gRPC
// through two sidecars, against both of its servers.
func TestConnectConformance(t *testing.T) {
	conform := suite(t, "connectrpc.com/conformance/cmd/connectconformance")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, app := freePort(t), freePort(t)
	start(t, fmt.Sprintf(grpcMesh, conform, self, out, freePort(t), freePort(t), app))
	conf := filepath.Join(shortDir(t), "conf.yaml")
	features := "features: {versions: [HTTP_VERSION_2], protocols: [PROTOCOL_GRPC], codecs: [CODEC_PROTO], supportsTls: false}\n"
	if err := os.WriteFile(conf, []byte(features), 0o644); err != nil {
		t.Fatal(err)
	}
	for server, known := range map[string][]string{"grpcserver": knownFailing, "referenceserver": nil} {
		t.Run(server, func(t *testing.T) {
			args := []string{"300", conform, "--mode", "server", "--conf", conf, "--max-servers", "1"}
			for _, k := range known {
				args = append(args, "--known-failing", k)
			}
			cmd := exec.Command("timeout", append(args, "--", self)...)
			cmd.Env = append(os.Environ(), "PARLEY_INTEROP_ROLE=conformance", "PARLEY_INTEROP_SERVER="+suite(t, "connectrpc.com/conformance/cmd/"+server),
				fmt.Sprintf("PARLEY_INTEROP_APP=%d", app), fmt.Sprintf("PARLEY_INTEROP_PROXY=%d", out))
			said, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(said), "Total cases: 374\n") || !strings.Contains(string(said), " 0 failed") {
				t.Fatalf("%v\n%s", err, said)
			}
			lines := strings.Split(strings.TrimSpace(string(said)), "\n")
			t.Log(strings.Join(lines[max(0, len(lines)-3):], "\n"))
		})
	}
}

// conformance is the server that the suite starts: one of the suite's own, whose
// address it reports as that of the sidecar before it. Both speak messages of
// Protocol Buffers behind their length in four bytes.
func conformance() error {
	cmd := exec.Command(os.Getenv("PARLEY_INTEROP_SERVER"), "-port", os.Getenv("PARLEY_INTEROP_APP"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	request, err := message(os.Stdin)
	if err != nil {
		return err
	}
	if _, err := in.Write(request); err != nil {
		return err
	}
	if err := in.Close(); err != nil {
		return err
	}
	if _, err := message(out); err != nil {
		return err
	}
	var port uint64
	if _, err := fmt.Sscan(os.Getenv("PARLEY_INTEROP_PROXY"), &port); err != nil {
		return err
	}
	// ServerCompatResponse: host is field 1, port field 2.
	const host = "127.0.0.1"
	response := append([]byte{0, 0, 0, 0, 1<<3 | 2, byte(len(host))}, host...)
	response = binary.AppendUvarint(append(response, 2<<3), port)
	binary.BigEndian.PutUint32(response, uint32(len(response)-4))
	if _, err := os.Stdout.Write(response); err != nil {
		return err
	}
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	return cmd.Wait()
}

// message reads one with its length, which it keeps.
func message(r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if n > 1<<20 {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r, body)
	return append(head, body...), err
}
