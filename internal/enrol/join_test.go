package enrol_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// joins keeps tokens in memory, by the rules of the interface.
type joins struct {
	mu     sync.Mutex // guards what follows
	known  map[string]enrol.JoinRecord
	key    map[string]string
	events []*audit.Event
	err    error
}

func (j *joins) CreateJoin(_ context.Context, r enrol.JoinRecord, e *audit.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	j.known[r.ID], j.events = r, append(j.events, e)
	return nil
}

func (j *joins) ClaimJoin(_ context.Context, c enrol.Claim, e *audit.Event) (string, string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r, ok := j.known[c.ID]
	switch {
	case j.err != nil:
		return "", "", j.err
	case !ok || r.Digest != c.Digest:
		return "", "join_unknown", enrol.ErrJoin
	case !c.At.Before(r.Expires):
		return "", "join_expired", enrol.ErrJoin
	case j.key[c.ID] != "" && j.key[c.ID] != c.Key:
		return "", "join_used", enrol.ErrJoin
	}
	j.key[c.ID], j.events = c.Key, append(j.events, e)
	return r.Host, "", nil
}

// moved is a clock that was moved.
type moved struct {
	clock.System
	by atomic.Int64
}

func (m *moved) Now() time.Time { return time.Now().Add(time.Duration(m.by.Load())) }

type joinHouse struct {
	house
	joins *joins
	clk   *moved
}

// newJoinHouse is a registrar that knows hosts one and two, and web on one.
func newJoinHouse(t *testing.T) *joinHouse {
	t.Helper()
	h := newHouse(t)
	j := &joinHouse{h, &joins{known: map[string]enrol.JoinRecord{}, key: map[string]string{}}, new(moved)}
	j.Registrar = enrol.New(enrol.Config{Authority: h.ca, Registry: h.reg, Joins: j.joins, Clock: j.clk, Logger: discard, Host: "server-1"})
	j.SetSubjects([]enrol.Subject{
		{ID: id("parley/agent/one"), TTL: enrol.AgentTTL, Hosts: []string{"one"}},
		{ID: id("parley/agent/two"), TTL: enrol.AgentTTL, Hosts: []string{"two"}},
		{ID: id("web"), TTL: time.Hour, Hosts: []string{"one"}},
		enrol.Admin(id("parley/admin/alice")),
	})
	return j
}

func (j *joinHouse) token(t *testing.T, host string) enrol.Join {
	t.Helper()
	join, err := j.NewJoin(t.Context(), host, time.Hour, &audit.Actor{User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	return join
}

func TestJoin(t *testing.T) {
	t.Parallel()
	h := newJoinHouse(t)
	join := h.token(t, "one")
	if len(join.Secret) != 32 || len(join.ID) != 32 || join.Host != "one" || time.Until(join.Expires).Round(time.Minute) != time.Hour {
		t.Errorf("%+v", join)
	}
	if r := h.joins.known[join.ID]; r.Digest != sha256.Sum256(join.Secret) || strings.Contains(fmt.Sprint(r), string(join.Secret)) {
		t.Error("the secret is kept")
	}
	key := newKey()
	csr := request(key, &x509.CertificateRequest{DNSNames: []string{"evil.example"}})
	host, chain, err := h.JoinHost(t.Context(), join.ID, join.Secret, csr, "10.0.0.9")
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if got, err := identity.LeafID(leaf); host != "one" || err != nil || got != id("parley/agent/one") || len(leaf.DNSNames) != 0 || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("%q, %v, %v", host, got, err)
	}
	if ttl := time.Until(leaf.NotAfter); ttl > enrol.AgentTTL || ttl < enrol.AgentTTL-time.Hour {
		t.Errorf("it lives %s", ttl)
	}
	var actions []audit.Action
	for _, e := range append(h.joins.events, h.reg.events...) {
		actions = append(actions, e.Action)
		if strings.Contains(fmt.Sprintf("%+v %+v", e, e.Object), string(join.Secret)) {
			t.Errorf("%s has the secret", e.Action)
		}
	}
	if fmt.Sprint(actions) != fmt.Sprint([]audit.Action{audit.JoinCreated, audit.HostJoined, audit.SVIDIssued}) {
		t.Errorf("recorded %v", actions)
	}
	if e := h.joins.events[1]; e.Caller.Address != "10.0.0.9" || e.Object.Serial != join.ID {
		t.Errorf("recorded %+v %+v", e.Caller, e.Object)
	}
	// An answer that was lost is given again to the same key, and to no other.
	if _, _, err := h.JoinHost(t.Context(), join.ID, join.Secret, csr, ""); err != nil {
		t.Errorf("the same key again: %v", err)
	}
	if _, _, err := h.JoinHost(t.Context(), join.ID, join.Secret, request(newKey(), &x509.CertificateRequest{}), ""); !errors.Is(err, enrol.ErrJoin) {
		t.Errorf("another key: %v", err)
	}
}

func TestJoinRefuses(t *testing.T) {
	t.Parallel()
	csr := request(newKey(), &x509.CertificateRequest{})
	forged := append([]byte(nil), csr...)
	forged[len(forged)-1] ^= 1
	for name, tt := range map[string]struct {
		change func(*joinHouse, *enrol.Join)
		csr    []byte
		reason string
		join   bool // refused for the token, of which the asker learns no more
	}{
		"unknown":        {func(_ *joinHouse, j *enrol.Join) { j.ID = "x" }, csr, "join_unknown", true},
		"secret":         {func(_ *joinHouse, j *enrol.Join) { j.Secret = make([]byte, 32) }, csr, "join_unknown", true},
		"no secret":      {func(_ *joinHouse, j *enrol.Join) { j.Secret = nil }, csr, "join_unknown", true},
		"expired":        {func(h *joinHouse, _ *enrol.Join) { h.clk.by.Store(int64(time.Hour)) }, csr, "join_expired", true},
		"no request":     {nil, nil, "request_invalid", false},
		"not its key":    {nil, forged, "request_invalid", false},
		"weak key":       {nil, request(must(rsa.GenerateKey(rand.Reader, 1024)), &x509.CertificateRequest{}), "request_invalid", false},
		"host gone":      {func(h *joinHouse, _ *enrol.Join) { h.SetSubjects(nil) }, csr, "not_in_revision", false},
		"host banned":    {func(h *joinHouse, _ *enrol.Join) { h.SetBanned([]identity.ID{id("parley/agent/one")}) }, csr, "not_in_revision", false},
		"long and wrong": {func(_ *joinHouse, j *enrol.Join) { j.ID = strings.Repeat("é", 1000) }, csr, "join_unknown", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newJoinHouse(t)
			join := h.token(t, "one")
			good := join
			if tt.change != nil {
				tt.change(h, &join)
			}
			host, chain, err := h.JoinHost(t.Context(), join.ID, join.Secret, tt.csr, "10.0.0.9")
			if host != "" || chain != nil || err == nil || errors.Is(err, enrol.ErrJoin) != tt.join {
				t.Fatalf("%q, %v", host, err)
			}
			if len(h.reg.records) != 0 || len(h.reg.events) != 1 {
				t.Fatalf("%d issued, %d events", len(h.reg.records), len(h.reg.events))
			}
			e := h.reg.events[0]
			if e.Action != audit.JoinRefused || e.Outcome != audit.Denied || e.Reason != tt.reason || e.Caller.Address != "10.0.0.9" || len(e.Object.Serial) > 64 {
				t.Errorf("recorded %+v %+v", e, e.Object)
			}
			if tt.reason == "request_invalid" { // which used nothing up
				if _, _, err := h.JoinHost(t.Context(), good.ID, good.Secret, csr, ""); err != nil {
					t.Errorf("the token is used up: %v", err)
				}
			}
		})
	}
}

// A stranger who tries at will does not fill the log, nor make it unwritable.
func TestRefusedJoinsAreBounded(t *testing.T) {
	t.Parallel()
	h := newJoinHouse(t)
	csr := request(newKey(), &x509.CertificateRequest{})
	for i := range 500 {
		if _, _, err := h.JoinHost(t.Context(), fmt.Sprint("guess ", i), nil, csr, "10.0.0.9"); !errors.Is(err, enrol.ErrJoin) {
			t.Fatal(err)
		}
	}
	h.clk.by.Store(int64(time.Minute))
	_, _, _ = h.JoinHost(t.Context(), "last", nil, csr, "10.0.0.9")
	if n := len(h.reg.events); n != 2 || !strings.Contains(h.reg.events[1].Message, "499 more") {
		t.Errorf("%d recorded, the last: %s", n, h.reg.events[n-1].Message)
	}
}

// A host that asks for what it does not get, at will, does not fill the log either.
func TestRefusedIssuanceIsBounded(t *testing.T) {
	t.Parallel()
	h := newJoinHouse(t)
	csr := request(newKey(), &x509.CertificateRequest{})
	for i := range 300 {
		for _, of := range []string{"web", "parley/agent/one", fmt.Sprint("guess", i)} {
			if _, err := h.Issue(t.Context(), "two", id(of), csr); err == nil {
				t.Fatalf("%s was issued to host two", of)
			}
		}
	}
	if n := len(h.reg.events); n != 3 {
		t.Errorf("%d recorded, want each kind once", n)
	}
	if _, err := h.Issue(t.Context(), "one", id("parley/agent/two"), csr); err == nil || len(h.reg.events) != 4 {
		t.Errorf("another host's first: %v, %d recorded", err, len(h.reg.events))
	}
}

func TestNewJoinRefuses(t *testing.T) {
	t.Parallel()
	h := newJoinHouse(t)
	for host, ttl := range map[string]time.Duration{"three": time.Hour, "": time.Hour, "a/b": time.Hour, "one": 0, "two": enrol.MaxJoinTTL + 1, "One": time.Hour} {
		if _, err := h.NewJoin(t.Context(), host, ttl, nil); len(fault.All(err)) != 1 || fault.All(err)[0].Hint == "" {
			t.Errorf("%q for %s: %v", host, ttl, err)
		}
	}
	h.SetBanned([]identity.ID{id("parley/agent/one")})
	if _, err := h.NewJoin(t.Context(), "one", time.Hour, nil); err == nil {
		t.Error("a token for a banned host")
	}
	h.joins.err = errors.New("full")
	if j, err := h.NewJoin(t.Context(), "two", time.Hour, nil); err == nil || j.Secret != nil {
		t.Errorf("a token that was not recorded: %v", err)
	}
}

// What only the server itself may ask for: no host has it.
func TestServersAndAdministratorsCertificates(t *testing.T) {
	t.Parallel()
	h := newJoinHouse(t)
	csr := request(newKey(), &x509.CertificateRequest{})
	server, alice := id("parley/server"), id("parley/admin/alice")
	for _, host := range []string{"one", "two", "", "server-1", "srv"} {
		for _, of := range []identity.ID{server, alice, id("parley/admin/mallory")} {
			if _, err := h.Issue(t.Context(), host, of, csr); err == nil {
				t.Errorf("%s for %q", of, host)
			}
			if _, _, err := h.IssueJWT(t.Context(), host, of, []string{"x"}); err == nil {
				t.Errorf("a token of %s for %q", of, host)
			}
		}
	}
	if _, err := h.IssueServer(t.Context(), server, csr); err != nil {
		t.Error(err)
	}
	if _, err := h.IssueAdmin(t.Context(), alice, csr); err != nil {
		t.Error(err)
	}
	for _, of := range []identity.ID{server, id("parley/admin/mallory"), id("web"), id("parley/agent/one"), {}} {
		if _, err := h.IssueAdmin(t.Context(), of, csr); err == nil {
			t.Errorf("an administrator's certificate for %s", of)
		}
	}
	h.SetBanned([]identity.ID{alice, id("web")})
	if _, err := h.IssueAdmin(t.Context(), alice, csr); err == nil {
		t.Error("a banned administrator's certificate")
	}
	if _, err := h.Issue(t.Context(), "one", id("web"), csr); err == nil {
		t.Error("a banned service's certificate")
	}
}

// A ban that comes while the registry writes: what was signed is not released.
func TestBanWhileIssuing(t *testing.T) {
	t.Parallel()
	h := newJoinHouse(t)
	join := h.token(t, "one")
	h.reg.during = func() { h.SetBanned([]identity.ID{id("parley/agent/one")}) }
	_, chain, err := h.JoinHost(t.Context(), join.ID, join.Secret, request(newKey(), &x509.CertificateRequest{}), "")
	wantFault(t, err, fault.NotSubject)
	if chain != nil {
		t.Error("released")
	}
}
