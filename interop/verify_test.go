package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestVerifyOnTwoHosts attacks one host from the other: as it should be nothing gets
// through; an application that listens on every interface does, until nftables closes
// its port; and plaintext does where the mesh file lets it in.
func TestVerifyOnTwoHosts(t *testing.T) {
	need(t, "nft", "/usr/sbin/nft")
	mesh := strings.Replace(fmt.Sprintf(siteMesh, need(t, "curl"), ""), "leaf_ttl: 20s", "leaf_ttl: 10m", 1)
	s := newSite(t, mesh)
	app := serveIn(t, s.ns[1])
	s.until("the first call passes", func() bool { code, _ := s.curl("http://127.0.0.1:15001/public/x"); return code == "200" })
	s.verify("as it should be", "PASS")

	app.end(syscall.SIGTERM)
	serveAt(t, s.ns[1], "0.0.0.0:8080")
	s.until("the application is back", func() bool { code, _ := s.curl("http://127.0.0.1:15001/public/x"); return code == "200" })
	s.verify("open to the network", "FAIL", "app port: "+hostB+":8080 took a connection")
	file := filepath.Join(s.dir, "parley.yaml")
	if err := os.WriteFile(file, []byte(mesh), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := inside(s.ns[1], parleyBinary, "firewall", "-f", file, "--host", "b", "--user", "root").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.verify("closed by nftables", "PASS")
	if code, _ := s.curl("http://127.0.0.1:15001/public/x"); code != "200" {
		t.Errorf("a call by the sidecar got %s", code)
	}

	until := time.Now().AddDate(0, 0, 7).UTC().Format(time.DateOnly)
	s.apply(strings.Replace(mesh, `app: "127.0.0.1:8080"`, `app: "127.0.0.1:8080", plaintext: observe, plaintext_until: `+until, 1))
	s.ready()
	s.verify("plaintext observed", "FAIL", "plaintext: the mesh file lets plaintext in until ")
	s.apply(mesh)
	s.ready()
	s.verify("strict again", "PASS")
}

// verify runs `parley verify` and wants its verdict, and lines of what got through and
// of nothing else.
func (s *site) verify(what, verdict string, lines ...string) {
	s.t.Helper()
	out, _ := inside(s.ns[0], parleyBinary, "--api", filepath.Join(s.dir, "server", "api.sock"), "verify").CombinedOutput() // its verdict says how it ended
	text := string(out)
	said := 0
	for line := range strings.Lines(text) {
		if strings.Contains(line, " -> site   ") || strings.HasPrefix(strings.TrimLeft(line, " NO?!"), "site   ") {
			said++
		}
	}
	ok := strings.Contains(text, verdict+"  ") && said == len(lines)
	for _, line := range lines {
		ok = ok && strings.Contains(text, line)
	}
	if !ok {
		s.t.Errorf("%s: want %s and %q\n%s", what, verdict, lines, text)
	}
}
