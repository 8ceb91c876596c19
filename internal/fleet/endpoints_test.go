package fleet_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Where site on b is, as web on a is told. All of them are on the server's machine,
// but for the agent in the server's process, which has no address.
func TestEndpointAddresses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		announced []string
		listen    string // of the mesh file
		stated    string // advertise of the mesh file
		said      string // advertise of the agent
		near, far []string
	}{
		"wildcard":            {announced: []string{"0.0.0.0:9443"}, near: []string{"127.0.0.1:9443"}},
		"wildcard of IPv6":    {announced: []string{"[::]:9443"}, near: []string{"127.0.0.1:9443"}},
		"mapped wildcard":     {announced: []string{"[::ffff:0.0.0.0]:9443"}, near: []string{"127.0.0.1:9443"}},
		"loopback":            {announced: []string{"127.0.0.1:9443", "[::1]:9443", "[::ffff:127.0.0.1]:9443"}},
		"the agent says":      {announced: []string{"0.0.0.0:9443"}, said: "10.0.0.2", near: []string{"10.0.0.2:9443"}, far: []string{"10.0.0.2:9443"}},
		"the file before it":  {announced: []string{"0.0.0.0:9443"}, said: "10.0.0.2", stated: "10.0.0.3", near: []string{"10.0.0.3:9443"}, far: []string{"10.0.0.3:9443"}},
		"IPv6":                {announced: []string{"0.0.0.0:9443"}, stated: "fd00::1", near: []string{"[fd00::1]:9443"}, far: []string{"[fd00::1]:9443"}},
		"its own address":     {announced: []string{"10.0.0.2:9443"}, said: "10.0.0.2", near: []string{"10.0.0.2:9443"}, far: []string{"10.0.0.2:9443"}},
		"as the file says":    {announced: []string{"10.0.0.9:9443"}, listen: "10.0.0.9:9443", near: []string{"10.0.0.9:9443"}, far: []string{"10.0.0.9:9443"}},
		"of another":          {announced: []string{"10.0.0.9:9443"}, said: "10.0.0.2"},
		"metadata service":    {announced: []string{"169.254.169.254:80"}, said: "10.0.0.2"},
		"everybody":           {announced: []string{"255.255.255.255:80", "224.0.0.1:80"}},
		"no port":             {announced: []string{"0.0.0.0:0"}},
		"zone":                {announced: []string{"[fe80::1%eth0]:80"}},
		"a name":              {announced: []string{"localhost:80", "db.example:80", ":80", "", "80"}},
		"zeros":               {announced: []string{"0.0.0.0:09443"}, said: "10.0.0.2", near: []string{"10.0.0.2:9443"}, far: []string{"10.0.0.2:9443"}},
		"more than its share": {announced: []string{"0.0.0.0:1", "0.0.0.0:2", "0.0.0.0:3", "0.0.0.0:4", "0.0.0.0:5"}, said: "10.0.0.2", near: []string{"10.0.0.2:1", "10.0.0.2:2", "10.0.0.2:3", "10.0.0.2:4"}, far: []string{"10.0.0.2:1", "10.0.0.2:2", "10.0.0.2:3", "10.0.0.2:4"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			s := h.shop(1)
			s.Hosts[1].Advertise = tt.stated
			s.Services[0].RunsOn = []string{"a", "srv"}
			s.Hosts = append(s.Hosts, snapshot.Host{Name: "srv", ID: agentID(h.ca, "srv")})
			if tt.listen != "" {
				s.Services[1].Inbound.Listen = tt.listen
			}
			h.publish(s)
			said := hello("b")
			said.Advertise = tt.said
			b := h.raw("b").greeted(said)
			r := &link.Report{Revision: 1}
			for _, a := range tt.announced {
				r.Endpoints = append(r.Endpoints, link.Endpoint{Service: "site", Address: a}, link.Endpoint{Service: "web", Address: a})
			}
			b.send(&link.AgentMessage{Report: r})
			eventually(t, "heard", func() bool { return h.fleet.Hosts()[1].Report.Revision == 1 })
			near := places(*h.raw("a").greeted(hello("a")).update())
			far := places(watch(t, h.fleet.Local("srv"), 0))
			for _, x := range []struct{ got, want []string }{{near, tt.near}, {far, tt.far}} {
				if x.want == nil {
					x.want = []string{}
				}
				if diff := cmp.Diff(x.want, x.got); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// A host that does not run a service cannot announce it.
func TestEndpointOfAServiceElsewhere(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	s := h.shop(1)
	s.Services[1].RunsOn = []string{"c"}
	h.publish(s)
	b := h.raw("b").greeted(hello("b"))
	b.send(&link.AgentMessage{Report: &link.Report{Revision: 1, Endpoints: []link.Endpoint{{Service: "site", Address: "0.0.0.0:1"}}}})
	eventually(t, "heard", func() bool { return h.fleet.Hosts()[1].Report.Revision == 1 })
	if got := places(*h.raw("a").greeted(hello("a")).update()); len(got) != 0 {
		t.Errorf("told %v", got)
	}
}

func TestEndpointsAreWithdrawn(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	a := h.raw("a").greeted(hello("a"))
	b, c := h.raw("b").greeted(hello("b")), h.raw("c").greeted(hello("c"))
	want := func(what string, want ...string) {
		t.Helper()
		eventually(t, what, func() bool { return cmp.Equal(append([]string{}, want...), places(*a.update())) })
	}
	site := func(addr string) *link.AgentMessage {
		return &link.AgentMessage{Report: &link.Report{Endpoints: []link.Endpoint{{Service: "site", Address: addr}}}}
	}
	b.send(site("0.0.0.0:1"))
	want("announced", "127.0.0.1:1")
	c.send(site("0.0.0.0:2"))
	want("both", "127.0.0.1:1", "127.0.0.1:2")
	b.send(&link.AgentMessage{Report: &link.Report{}})
	want("withdrawn", "127.0.0.1:2")
	b.send(site("0.0.0.0:1"))
	want("announced anew", "127.0.0.1:1", "127.0.0.1:2")
	c.cancel()
	want("lost", "127.0.0.1:1")
	_ = b.CloseSend()
	want("drained")
}

// An agent that comes back from another address takes its endpoints along, also
// where its old connection was not known to be dead.
func TestEndpointsFollowTheirHost(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	a := h.raw("a").greeted(hello("a"))
	at := func(ip string) *stream {
		said := hello("b")
		said.Advertise = ip
		b := h.raw("b").greeted(said)
		b.send(&link.AgentMessage{Report: &link.Report{Endpoints: []link.Endpoint{{Service: "site", Address: "0.0.0.0:1"}}}})
		return b
	}
	at("10.0.0.1")
	eventually(t, "the first", func() bool { return cmp.Equal([]string{"10.0.0.1:1"}, places(*a.update())) })
	at("10.0.0.2")
	if diff := cmp.Diff([]string{"10.0.0.2:1"}, places(*a.update())); diff != "" {
		t.Error(diff)
	}
}
