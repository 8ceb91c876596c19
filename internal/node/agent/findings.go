package agent

import (
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/spool"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fetch"
	"github.com/parleymesh/parley/internal/resolve"
	"github.com/parleymesh/parley/internal/snapshot"
)

// findings are what attestation noticed about the services of the snapshot, each
// once. There are at most as many as services and codes.
type findings struct {
	mu    sync.Mutex // guards what follows
	known map[finding]api.Finding
	// accounts are whom processes of a service were last seen to run as.
	accounts map[string]attest.Account
}

type finding struct {
	service string
	code    fault.Code
}

// add keeps what was found and says what of it is new.
func (f *findings) add(service string, faults []*fault.Fault) (fresh []*fault.Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil {
		f.known = map[finding]api.Finding{}
	}
	for _, x := range faults {
		key := finding{service, x.Code}
		if _, ok := f.known[key]; !ok {
			fresh = append(fresh, x)
		}
		f.known[key] = api.Finding{Code: string(x.Code), Message: x.Message, Help: x.Hint}
	}
	return fresh
}

// keep forgets the findings of services that are not among names.
func (f *findings) keep(names map[string]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.known {
		if !names[k.service] {
			delete(f.known, k)
		}
	}
	for service := range f.accounts {
		if !names[service] {
			delete(f.accounts, service)
		}
	}
}

// saw keeps whom a process of the service runs as.
func (f *findings) saw(service string, account attest.Account) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.accounts == nil {
		f.accounts = map[string]attest.Account{}
	}
	f.accounts[service] = account
}

// account is whom the processes of the service run as: the stated user, or that of
// the one seen last.
func (f *findings) account(service string, want snapshot.RunsAs) (attest.Account, bool) {
	if want.User != "" {
		return attest.AccountOf(want.User)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	account, ok := f.accounts[service]
	return account, ok
}

func serviceNames(s *snapshot.Snapshot) map[string]bool {
	names := make(map[string]bool, len(s.Services))
	for _, svc := range s.Services {
		names[svc.Name] = true
	}
	return names
}

// settle forgets what was found and is so no more.
func (f *findings) settle(service string, code fault.Code) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, finding{service, code})
}

// lookAtHost finds what of the newest update's selectors is weak on this host, or
// matches nothing there, and forgets what was mended. It returns what it looked at,
// nil before the first.
func (a *Agent) lookAtHost() *snapshot.Snapshot {
	a.hosting.Lock() // not to undo what was found of a newer one
	defer a.hosting.Unlock()
	u := a.pending.Load()
	if u == nil {
		return nil
	}
	for _, svc := range u.Snapshot.Services {
		if f := attest.Missing(svc.Name, svc.RunsAs); f != nil {
			a.noteFindings(svc.Name, []*fault.Fault{f})
		} else {
			a.findings.settle(svc.Name, fault.SelectorMissing)
		}
		account, ok := a.findings.account(svc.Name, svc.RunsAs)
		if weak := account.Findings(svc.RunsAs); ok && len(weak) > 0 {
			a.noteFindings(svc.Name, weak)
		} else {
			a.findings.settle(svc.Name, fault.WritableByItself)
		}
	}
	return u.Snapshot
}

// Findings are what should be looked at now, in order.
func (a *Agent) Findings() []api.Finding {
	s := a.lookAtHost()
	if s == nil {
		return []api.Finding{}
	}
	names := serviceNames(s)
	a.findings.mu.Lock()
	defer a.findings.mu.Unlock()
	out := make([]api.Finding, 0, len(a.findings.known))
	for k, f := range a.findings.known {
		if names[k.service] { // an update may have come into force meanwhile
			out = append(out, f)
		}
	}
	out = append(out, a.closer.findings()...)
	for _, p := range a.issuers.Problems() {
		f := issuerFault(p)
		out = append(out, api.Finding{Code: string(f.Code), Message: f.Message, Help: f.Hint})
	}
	for _, p := range a.names.Problems() {
		f := nameFault(p)
		out = append(out, api.Finding{Code: string(f.Code), Message: f.Message, Help: f.Hint})
	}
	for _, t := range a.spool.Troubles() {
		f := logFault(t, filepath.Join(a.cfg.Dir, "log"))
		out = append(out, api.Finding{Code: string(f.Code), Message: f.Message, Help: f.Hint})
	}
	for _, f := range a.logs.faults(filepath.Join(a.cfg.Dir, "log")) {
		out = append(out, api.Finding{Code: string(f.Code), Message: f.Message, Help: f.Hint})
	}
	slices.SortFunc(out, func(x, y api.Finding) int { return strings.Compare(x.Message, y.Message) })
	return out
}

// logFault says what is wrong with the agent's own log, and since when.
func logFault(t spool.Trouble, dir string) *fault.Fault {
	hint := "ls -la " + dir + "; parley audit search --action audit.degraded says when it began"
	if t.Code == fault.LogFull {
		hint = "df -h " + dir + ": make room; recording goes on by itself"
	}
	return fault.New(t.Code, hint, "the agent's audit log, since %s: %s (%s)", t.Since.UTC().Format(time.RFC3339), t.Message, t.Reason)
}

// issuerFault says what is wrong with the keys of an issuer. The issuer may have
// written a part of it.
func issuerFault(p fetch.Problem) *fault.Fault {
	why := p.Err.Error()
	if strings.ContainsFunc(why, func(c rune) bool { return c < ' ' || c > '~' }) {
		why = strconv.QuoteToASCII(why)
	}
	const hint = "from the gateway's host: curl -v URL of the issuer, then parley explain jwks_unavailable"
	switch {
	case p.Closed:
		return fault.New(fault.IssuerKeys, hint, "the keys of issuer %s are not loaded, and its tokens are refused: %s", p.Name, why)
	case !p.Until.IsZero():
		return fault.New(fault.IssuerKeys, hint, "the keys of issuer %s cannot be loaded again, those of before are used until %s: %s", p.Name, p.Until.UTC().Format(time.RFC3339), why)
	}
	return fault.New(fault.IssuerKeys, "tell whoever runs the issuer", "a key of issuer %s is not used: %s", p.Name, why)
}

// nameFault says what is wrong with the DNS name of an endpoint.
func nameFault(p resolve.Problem) *fault.Fault {
	host, _, _ := net.SplitHostPort(p.Name)
	kept := "it leads nowhere"
	if p.Kept > 0 {
		kept = strconv.Itoa(p.Kept) + " addresses are used"
	}
	return fault.New(fault.EndpointName, "on this host: getent ahosts "+host, "the name of endpoint %s cannot be looked up in full, and %s: %v", p.Name, kept, p.Err)
}

// noteAccount looks at what whoever runs as a service may do to its selectors.
func (a *Agent) noteAccount(service string, want snapshot.RunsAs, account attest.Account) {
	a.findings.saw(service, account)
	a.noteFindings(service, account.Findings(want))
}

// noteFindings keeps and, where they are new, records what attestation noticed.
func (a *Agent) noteFindings(service string, faults []*fault.Fault) {
	for _, f := range a.findings.add(service, faults) {
		now := a.cfg.Clock.Now()
		a.Record(&audit.Event{
			ID: audit.NewID(now), Time: now, Class: audit.Security, Action: audit.Finding, Outcome: audit.Success,
			Reason: string(f.Code), Message: f.Message, Object: &audit.Object{Kind: "service", Name: service},
		})
	}
}
