package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/firewall"
	"github.com/parleymesh/parley/internal/snapshot"
)

// filter is a packet filter that takes whatever it is given.
type filter struct {
	puts int
	text string
	err  error
}

func (f *filter) Put(_ context.Context, r firewall.Rules) error {
	if f.err != nil {
		return f.err
	}
	f.puts++
	f.text = r.String()
	return nil
}

func (f *filter) Listed(context.Context) (string, error) { return f.text, f.err }

// The rules follow revisions, are put in again where somebody took them away, and are
// tried again where they could not be put in; nothing is done twice for nothing.
func TestAppPortsAreKeptClosed(t *testing.T) {
	t.Parallel()
	clk, log, f := &hand{}, &bytes.Buffer{}, &filter{}
	c := closer{filter: f, clk: clk, logger: slog.New(slog.NewTextHandler(log, nil)), listens: []string{"127.0.0.1:9090"}}
	check := func(what string, s *snapshot.Snapshot, puts int, port, found string) {
		t.Helper()
		c.look(t.Context(), s)
		var all []string
		for _, x := range c.findings() {
			all = append(all, x.Code+" "+x.Message)
		}
		if f.puts != puts || !strings.Contains(f.text, port) || !strings.Contains(strings.Join(all, "; "), found) {
			t.Errorf("%s: put in %d times, want %d; %q, findings %q", what, f.puts, puts, f.text, all)
		}
	}
	one, two := called("127.0.0.1:8081"), called("127.0.0.1:8082")
	check("the first", one, 1, "{ 8081 }", "")
	check("the same", one, 1, "{ 8081 }", "")
	check("another revision", two, 2, "{ 8082 }", "")
	clk.ahead += closedEvery
	check("later", two, 2, "{ 8082 }", "")
	f.text = ""
	check("removed, and not looked at yet", two, 2, "", "")
	clk.ahead += closedEvery
	check("removed", two, 3, "{ 8082 }", "")
	if !c.closes(8082) || c.closes(8081) {
		t.Error("what is closed is not what is in force")
	}
	if !strings.Contains(log.String(), "put in again") {
		t.Errorf("logged %s", log)
	}

	f.err = fault.New(fault.FirewallUnusable, "", "not now")
	check("not taken", one, 3, "{ 8082 }", "PAR-4021 not now")
	if c.closes(8081) || c.closes(8082) {
		t.Error("what nobody knows to be in force counts as closed")
	}
	f.err = errors.New("never seen: it is too early")
	check("too early to try again", one, 3, "{ 8082 }", "not now")
	f.err = nil
	clk.ahead += closedEvery
	check("tried again", one, 4, "{ 8081 }", "")
	if n := strings.Count(log.String(), "not now"); n != 1 {
		t.Errorf("logged %d times: %s", n, log)
	}
	check("a port that must stay open", called("127.0.0.1:9090", "127.0.0.1:8083"), 5, "{ 8083 }", "the agent itself is on port 9090 too")
	check("none", &snapshot.Snapshot{}, 6, "delete table", "")
	clk.ahead -= time.Hour
	check("the clock was set back", &snapshot.Snapshot{}, 6, "delete table", "")
	if os.Geteuid() == 0 {
		check("as root", one, 7, "skuid 0 accept", "every process of root")
	}
}
