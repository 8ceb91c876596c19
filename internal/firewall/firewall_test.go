package firewall_test

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/firewall"
	"github.com/parleymesh/parley/internal/snapshot"
)

var update = flag.Bool("update", false, "write the golden files")

func service(name, listen, app string) snapshot.Service {
	return snapshot.Service{Name: name, Inbound: &snapshot.Inbound{Listen: listen, App: app}}
}

// What is closed is each app port once, and nothing where no application has one.
func TestRules(t *testing.T) {
	t.Parallel()
	s := &snapshot.Snapshot{Services: []snapshot.Service{
		service("orders", ":9443", "127.0.0.1:8081"),
		service("ledger", ":9444", "[::1]:5432"),
		service("again", ":9445", "127.0.0.1:8081"),
		service("everywhere", ":9446", "0.0.0.0:8082"),
		service("here", ":9447", "10.0.0.9:8083"),
		service("socket", ":9448", "unix:/run/socket.sock"),
		{Name: "caller", Outbound: []snapshot.Outbound{{To: "orders", Listen: "127.0.0.1:15001"}, {To: "ledger", Listen: "unix:/run/l.sock"}}},
	}}
	r, err := firewall.New(s, firewall.Host{UID: 998, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}})
	if err != nil {
		t.Fatal(err)
	}
	want := []firewall.Port{{Service: "again", Port: 8081}, {Service: "everywhere", Port: 8082}, {Service: "here", Port: 8083}, {Service: "ledger", Port: 5432}, {Service: "orders", Port: 8081}}
	if d := cmp.Diff(want, r.Ports); d != "" {
		t.Error(d)
	}
	const golden = "testdata/rules.nft"
	if *update {
		if err := os.WriteFile(golden, []byte(r.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(text), r.String()); d != "" {
		t.Error(d)
	}
	// No word of the rules is about anything but our own table.
	for line := range strings.Lines(r.String()) {
		for _, bad := range []string{"flush", "drop", "ruleset", "policy drop"} {
			if strings.Contains(line, bad) {
				t.Errorf("the rules say %q", line)
			}
		}
	}
	odd, err := firewall.New(&snapshot.Snapshot{Services: []snapshot.Service{service("a\nflush ruleset", ":1", "127.0.0.1:8081")}}, firewall.Host{UID: 998})
	if err != nil || !strings.Contains(odd.String(), "# a?flush?ruleset: 8081\n") {
		t.Errorf("a name that is none: %q, %v", odd, err)
	}
	none, err := firewall.New(&snapshot.Snapshot{Services: []snapshot.Service{service("socket", ":1", "unix:/s")}}, firewall.Host{UID: 998})
	if err != nil || none.String() != "table inet parley\ndelete table inet parley\n" {
		t.Errorf("without ports: %q, %v", none, err)
	}
}

// A port that something else is on as well stays open, and is named; the others are
// closed all the same.
func TestPortsThatStayOpen(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ app, says string }{
		"ssh":        {"127.0.0.1:22", "SSH"},
		"server":     {"127.0.0.1:7443", "a parley server"},
		"inbound":    {"127.0.0.1:9443", "orders.inbound"},
		"its own":    {"127.0.0.1:9444", "own.inbound"},
		"outbound":   {"[::1]:15001", "orders.calls.own"},
		"gateway":    {"127.0.0.1:443", "gateway.edge"},
		"redirect":   {"127.0.0.1:80", "gateway.edge.redirect"},
		"metrics":    {"127.0.0.1:9090", "the agent itself"},
		"elsewhere":  {"10.0.0.10:8081", "not on this host"},
		"a name":     {"db.example:5432", "not on this host"},
		"no address": {"8081", "no address"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			orders := service("orders", "10.0.0.9:9443", "127.0.0.1:8080")
			orders.Outbound = []snapshot.Outbound{{To: "own", Listen: "127.0.0.1:15001"}}
			s := &snapshot.Snapshot{
				Services: []snapshot.Service{orders, service("own", "10.0.0.9:9444", tt.app)},
				Gateways: []snapshot.Gateway{{Name: "edge", Listen: ":443", Redirect: &snapshot.Redirect{Listen: ":80"}}},
			}
			r, err := firewall.New(s, firewall.Host{UID: 998, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}, Listens: []string{"", "127.0.0.1:9090"}})
			f := fault.All(err)
			if len(f) != 1 || f[0].Code != fault.PortNotClosed || !strings.Contains(f[0].Message, tt.says) || !strings.Contains(f[0].Message, "own") || f[0].Hint == "" {
				t.Errorf("got %v", err)
			}
			if d := cmp.Diff([]firewall.Port{{Service: "orders", Port: 8080}}, r.Ports); d != "" {
				t.Error(d)
			}
		})
	}
}

// Whom the rules cannot tell from the agent is said.
func TestLimits(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &snapshot.Snapshot{Services: []snapshot.Service{service("orders", ":9443", l.Addr().String()), service("socket", ":9444", "unix:/s")}}
	limits := func(uid int, user string) string {
		s.Services[0].RunsAs.User = user
		r, err := firewall.New(s, firewall.Host{UID: uid})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(r.Limits(s), "\n")
	}
	if got := limits(0, "65534"); !strings.Contains(got, "every process of root") || strings.Contains(got, "orders") {
		t.Errorf("root: %q", got)
	}
	if got := limits(998, "65534"); got != "" {
		t.Errorf("users of their own: %q", got)
	}
	if got := limits(65534, "65534"); !strings.Contains(got, "orders runs as the agent's own user") {
		t.Errorf("stated: %q", got)
	}
	if self := os.Getuid(); self != 0 {
		if got := limits(self, ""); !strings.Contains(got, "orders runs as the agent's own user") {
			t.Errorf("by who listens: %q", got)
		}
	}
	if got := limits(998, "nobody-of-that-name"); got != "" {
		t.Errorf("unknown: %q", got)
	}
	// The agent is who has an inbound listener.
	s.Services[0].Inbound.Listen = l.Addr().String()
	if uid, ok := firewall.Agent(s); !ok || uid != os.Getuid() {
		t.Errorf("the agent runs as %d, %v", uid, ok)
	}
	_ = l.Close()
	if uid, ok := firewall.Agent(s); ok {
		t.Errorf("without a listener the agent runs as %d", uid)
	}
}
