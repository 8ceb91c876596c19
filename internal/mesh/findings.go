package mesh

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A Finding is something in a valid mesh file that is probably not meant, or
// that somebody should have meant.
type Finding struct {
	// Kind is a stable name: nobody_may_call, call_without_rule,
	// rule_without_call, redundant_rule, unreachable_route, public_route,
	// app_on_all_interfaces, app_off_loopback, same_workload, exe_without_user,
	// unused_issuer, apart_by_exe, plaintext_observed, plaintext_over.
	Kind    string `json:"kind"`
	Message string `json:"message"`
	// Hint is what to do about it.
	Hint string `json:"help,omitempty"`
	File string `json:"file"`
	Line int    `json:"line"`
}

// Findings looks for rules and routes without effect, services nobody may call,
// calls that policy refuses, plaintext that others can reach, and services whose
// processes cannot be told apart, as of now. They come in order of place.
func Findings(f *File, now time.Time) []Finding {
	l := &finder{f: f, now: now, c: newComparer(), called: map[string]bool{}}
	for name, g := range f.Gateways {
		l.gateway(name, g)
	}
	for name, s := range f.Services {
		l.service(name, s)
	}
	l.workloads()
	l.issuers()
	l.programs()
	slices.SortFunc(l.found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Message, b.Message))
	})
	return l.found
}

type finder struct {
	f      *File
	now    time.Time
	c      *comparer
	called map[string]bool // "gateway/NAME -> service" for every route
	found  []Finding
}

func (l *finder) add(kind, path, hint, format string, args ...any) {
	l.found = append(l.found, Finding{kind, fmt.Sprintf(format, args...), hint, l.f.name, l.f.Line(path)})
}

func (l *finder) gateway(name string, g *Gateway) {
	for i, r := range g.Routes {
		at := fmt.Sprintf("gateway.%s.routes[%d]", name, i)
		l.called["gateway/"+name+" -> "+r.To] = true
		if r.Require != nil && r.Require.Public {
			l.add("public_route", at, "", "everybody may call %s through gateway %s: %s", r.To, name, r)
		}
		for j, before := range g.Routes[:i] {
			if coversHost(before.host(), r.host()) && l.c.covers(before.grant(), r.grant()) {
				l.add("unreachable_route", at, "move it up, or remove it", "route %d of gateway %s is never taken: route %d takes its requests", i, name, j)
				break
			}
		}
	}
}

func (l *finder) service(name string, s *Service) {
	path := "services." + name
	for i, c := range s.Calls {
		if callee := l.f.Services[c.To]; callee != nil && callee.Inbound == nil {
			continue // its program decides
		}
		if !l.allowed(name, c.To) {
			l.add("call_without_rule", fmt.Sprintf("%s.calls[%d]", path, i), fmt.Sprintf("if it is to be called, see what would allow it: parley why %s %s%s", name, c.To, anyCall(l.f.Services[c.To])),
				"%s calls %s, and no rule of %s allows it", name, c.To, c.To)
		}
	}
	if r := s.RunsAs; r != nil && (r.Exe != "" || r.SHA256 != "") && r.User == "" && r.Group == "" && r.Systemd == "" {
		// Whoever may run a program may also steer it: with a debugger, or by
		// what it loads.
		l.add("exe_without_user", path+".runs_as", "add the user that it runs as: user: NAME",
			"any user of the host who may run the executable of %s can pose as it", name)
	}
	if s.Inbound == nil {
		return
	}
	l.app(name, path, s.Inbound)
	l.plaintext(name, path, s.Inbound)
	if len(s.Allow) == 0 && !slices.ContainsFunc(slices.Collect(maps.Keys(l.called)), func(e string) bool { return strings.HasSuffix(e, " -> "+name) }) {
		l.add("nobody_may_call", path, "add an allow entry, or remove inbound", "nobody may call %s", name)
	}
	for i, a := range s.Allow {
		at := fmt.Sprintf("%s.allow[%d]", path, i)
		for _, from := range a.From {
			if !l.calls(from, name) {
				l.add("rule_without_call", at, "a program that uses the SDK needs no calls entry", "%s may call %s, and has no way to it in this file", from, name)
			}
		}
		for j, other := range s.Allow {
			// Of two equal rules the later one is the redundant one.
			if i != j && l.holds(other, a) && (j < i || !l.holds(a, other)) {
				l.add("redundant_rule", at, "remove it", "%s.allow[%d] allows nothing that %s.allow[%d] does not", name, i, name, j)
				break
			}
		}
	}
}

// anyCall is what of a call a person fills in: by TCP nothing.
func anyCall(s *Service) string {
	if s.Inbound != nil && s.Inbound.Protocol == tcp {
		return ""
	}
	return " METHOD PATH"
}

// holds says that wide allows everything that narrow does.
func (l *finder) holds(wide, narrow *Allow) bool {
	return l.c.subset(narrow.From, wide.From, func(n, w string) bool { return n == w }) && l.c.covers(wide.grant(), narrow.grant())
}

func (l *finder) allowed(from, to string) bool {
	s := l.f.Services[to]
	return s != nil && slices.ContainsFunc(s.Allow, func(a *Allow) bool { return slices.Contains(a.From, from) })
}

// calls says that the document gives from a way to to.
func (l *finder) calls(from, to string) bool {
	if s := l.f.Services[from]; s != nil {
		return slices.ContainsFunc(s.Calls, func(c *Call) bool { return c.To == to })
	}
	return l.called[from+" -> "+to]
}

func (l *finder) app(name, path string, in *Inbound) {
	app, bad := parseAddress(in.App, onLoopback)
	listen, _ := parseAddress(in.Listen, onAllInterfaces)
	at := path + ".inbound.app"
	switch {
	case bad != nil || app.local():
	case app.host == "" && listen.host == "":
		l.add("app_on_all_interfaces", at, "let it listen on 127.0.0.1", "the application of %s listens on all interfaces beside its inbound listener: others reach it in plaintext and without a rule", name)
	case app.host == "":
		l.add("app_on_all_interfaces", at, "let it listen on 127.0.0.1", "the application of %s listens on all interfaces: others reach it in plaintext and without a rule", name)
	default:
		l.add("app_off_loopback", at, "let it listen on 127.0.0.1 or a Unix socket", "the application of %s is reached over %s: others may reach it in plaintext and without a rule", name, app.host)
	}
}

// issuers finds those whose tokens no route accepts.
func (l *finder) issuers() {
	used := l.f.usedIssuers()
	for name, i := range l.f.Issuers {
		if !used[i.Issuer] {
			l.add("unused_issuer", "issuers."+name, "name it under require of a route, or remove it", "no route accepts a token of %s", name)
		}
	}
}

// workloads finds services whose processes are another service's as well.
func (l *finder) workloads() {
	names := slices.Sorted(maps.Keys(l.f.Services))
	for i, a := range names {
		for _, b := range names[i+1:] {
			wide, narrow := a, b
			ra, rb := l.f.Services[a].RunsAs, l.f.Services[b].RunsAs
			if ra == nil || rb == nil {
				continue
			}
			if !rb.within(ra) {
				wide, narrow = b, a
				if !ra.within(rb) {
					continue
				}
			}
			l.add("same_workload", "services."+wide+".runs_as", "give each a user or a systemd unit of its own", "every process of %s is also %s", narrow, wide)
		}
	}
}

// programs finds services of one user that only their executables tell apart:
// whoever runs code as that user can have one of them run as another.
func (l *finder) programs() {
	type account struct{ user, group, systemd string }
	shared := map[account][]string{}
	for _, name := range slices.Sorted(maps.Keys(l.f.Services)) {
		if r := l.f.Services[name].RunsAs; r != nil && (r.Exe != "" || r.SHA256 != "") {
			a := account{r.User, r.Group, r.Systemd}
			shared[a] = append(shared[a], name)
		}
	}
	for a, names := range shared {
		if len(names) < 2 || a == (account{}) { // each of these is an exe_without_user
			continue
		}
		l.add("apart_by_exe", "services."+names[0]+".runs_as", "give each a user of its own",
			"%s run as the same user and differ by executable only: whoever runs code as that user can pose as each of them", and(names))
	}
}

func and(names []string) string {
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}
