package node

import (
	"fmt"
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fleet"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A survey puts what every host reports into one picture.
type survey struct {
	snap  *snapshot.Snapshot // what was published last; nil before that
	hosts []fleet.Host
}

// fill adds everything to st that hosts say.
func (s *survey) fill(st *control.RuntimeStatus) {
	if s.snap == nil {
		return
	}
	st.Revision = s.revision()
	many := len(s.snap.Hosts) > 0
	for i := range s.hosts {
		h := &s.hosts[i]
		if many || !h.Local {
			st.Hosts = append(st.Hosts, hostStatus(h))
		}
		for _, f := range h.Report.Findings {
			st.Findings = append(st.Findings, api.Finding{Code: f.Code, Message: s.on(h, f.Message), Help: f.Help})
		}
		if h.Report.Delivery != "" && h.Connected {
			st.Audit.State, st.Audit.Note = api.StateFailed, s.on(h, "the newest events wait in the agent's log: "+h.Report.Delivery)
		}
	}
	for i := range s.snap.Services {
		v := &s.snap.Services[i]
		one := s.service(v.Name, v.ID.String(), v.RunsOn)
		one.Endpoints = s.endpoints(v)
		st.Services = append(st.Services, one)
	}
	for _, g := range s.snap.Gateways {
		v := s.service(g.Name, g.ID.String(), g.RunsOn)
		st.Gateways = append(st.Gateways, api.GatewayStatus{
			Name: v.Name, ID: v.ID, State: v.State, Note: v.Note, Serial: v.Serial, NotAfter: v.NotAfter, RenewsAt: v.RenewsAt,
			Listen: g.Listen, Routes: len(g.Routes),
		})
	}
	st.Listeners = s.listeners()
	st.Plaintext = s.plaintext()
}

// plaintext are the services that let callers in without TLS, with who came so to any
// host, also to one that is not connected now.
func (s *survey) plaintext() (out []api.PlaintextStatus) {
	for _, v := range s.snap.Services {
		if v.Inbound == nil || v.Inbound.PlaintextUntil.IsZero() {
			continue
		}
		st := api.PlaintextStatus{Service: v.Name, Until: v.Inbound.PlaintextUntil.UTC(), Sources: []api.PlaintextSource{}}
		for i := range s.hosts {
			h := &s.hosts[i]
			for _, p := range h.Report.Plaintext {
				if p.Service != v.Name || len(s.snap.Hosts) > 0 && !slices.Contains(v.RunsOn, h.Name) {
					continue // another host's agent has nothing to say of it
				}
				src := api.PlaintextSource{Address: p.Address, Calls: p.Count, First: p.First.UTC(), Last: p.Last.UTC()}
				if len(s.snap.Hosts) > 0 {
					src.Host = h.Name
				}
				st.Sources = append(st.Sources, src)
			}
		}
		slices.SortStableFunc(st.Sources, func(a, b api.PlaintextSource) int { return b.Last.Compare(a.Last) })
		out = append(out, st)
	}
	return out
}

// revision is the oldest that is in force on a host that is connected: what is not
// in force everywhere does not run.
func (s *survey) revision() (oldest int64) {
	for _, h := range s.hosts {
		if h.Connected && (oldest == 0 || h.Report.Revision < oldest) {
			oldest = h.Report.Revision
		}
	}
	return oldest
}

// on names the host of a sentence, where there are several.
func (s *survey) on(h *fleet.Host, text string) string {
	if len(s.snap.Hosts) == 0 {
		return text
	}
	return "on " + h.Name + ": " + text
}

func hostStatus(h *fleet.Host) api.HostStatus {
	st := api.HostStatus{
		Name: h.Name, State: api.StateOK, Version: h.Version, Address: h.Address, Since: h.Since.UTC(), Revision: h.Report.Revision,
	}
	switch {
	case !h.Connected && h.Since.IsZero():
		st.State, st.Note = api.StateWaiting, "not seen since this server started"
	case !h.Connected:
		st.State, st.Note = api.StateFailed, "not connected; if its agent runs, it goes on with revision "+fmt.Sprint(h.Report.Revision)
	case len(h.Lacks) > 0:
		st.State, st.Note = api.StateFailed, fmt.Sprintf("its agent is too old for the newest revision: it lacks %s", strings.Join(h.Lacks, ", "))
	case h.Report.Fault != "":
		st.State, st.Note = api.StateFailed, h.Report.Fault
	case !h.Current:
		st.State, st.Note = api.StateWaiting, "the newest revision is on its way"
	}
	return st
}

// service is the state of a service or gateway: the worst of its hosts'.
func (s *survey) service(name, id string, on []string) api.ServiceStatus {
	st := api.ServiceStatus{Name: name, ID: id, State: api.StateOK}
	rank := map[api.State]int{api.StateOK: 0, api.StateWaiting: 1, api.StateFailed: 2}
	seen := 0
	for i := range s.hosts {
		h := &s.hosts[i]
		if len(on) > 0 && !slices.Contains(on, h.Name) {
			continue
		}
		state, note, help := api.StateWaiting, "no certificate yet", ""
		if !h.Connected && len(on) > 0 {
			note = "the host is not connected"
		}
		for _, r := range h.Report.Services {
			if r.Name != name || !h.Connected {
				continue
			}
			state, note, help = api.State(r.State), r.Note, r.Help
			if st.Serial == "" {
				st.Serial, st.NotAfter, st.RenewsAt = r.Serial, r.NotAfter, r.RenewsAt
			}
		}
		seen++
		if rank[state] > rank[st.State] {
			st.State, st.Note, st.Help = state, s.on(h, note), help
		}
	}
	if seen == 0 {
		st.State, st.Note = api.StateWaiting, "no agent runs it"
	}
	return st
}

// listeners are those of every host, with what the snapshot says of each.
func (s *survey) listeners() (out []api.ListenerStatus) {
	facts := listenerFacts(s.snap)
	for _, h := range s.hosts {
		if !h.Connected {
			continue
		}
		for _, l := range h.Report.Listeners {
			st := facts[l.Name]
			st.Name, st.Protocol, st.Address, st.State, st.Note, st.Help = l.Name, l.Protocol, l.Address, api.State(l.State), l.Note, l.Help
			if len(s.snap.Hosts) > 0 {
				st.Host = h.Name
			}
			out = append(out, st)
		}
	}
	return out
}
