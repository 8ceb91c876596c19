package enrol_test

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// probes lets host-1 call as web, and host-2 as orders.
func probes() enrol.Probes {
	return enrol.Probes{"host-1": {id("web"): true, id("late"): false}, "host-2": {id("orders"): true}}
}

// What is issued is recorded as a probe's, with its flaw, and is of use as nothing else.
func TestIssueProbe(t *testing.T) {
	t.Parallel()
	for flaw, want := range map[ca.Flaw]error{
		ca.NoFlaw: nil, ca.Expired: identity.ErrExpired, ca.NotYetValid: identity.ErrNotYetValid,
		ca.WrongUsage: identity.ErrLeafEKU, ca.TwoNames: identity.ErrURICount,
	} {
		t.Run(string(flaw), func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.SetProbes(probes())
			key := newKey()
			chain, err := h.IssueProbe(t.Context(), "host-1", id("web"), flaw, request(key, &x509.CertificateRequest{DNSNames: []string{"a.example"}}))
			if err != nil {
				t.Fatal(err)
			}
			trust := &identity.Trust{
				Bundles: map[identity.TrustDomain]*identity.Bundle{h.Bundle().TrustDomain: h.Bundle()},
				Members: map[identity.ID]bool{id("web"): true},
			}
			leaf := chain[0]
			if _, err := trust.VerifyProbe(chain, leaf.NotBefore.Add(1)); want == nil && err != nil {
				t.Error(err)
			}
			if _, err := trust.Verify(chain, leaf.NotBefore.Add(1)); !errors.Is(err, identity.ErrProbe) {
				t.Errorf("as a service: %v", err)
			}
			if !key.PublicKey.Equal(leaf.PublicKey) || len(leaf.DNSNames) > 0 {
				t.Errorf("it says %v", leaf.DNSNames)
			}
			record := []enrol.Record{{
				Serial: identity.Serial(leaf), ID: id("web"), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
				Fingerprint: identity.Fingerprint(leaf), Host: "host-1", Kind: enrol.KindProbe,
			}}
			if diff := cmp.Diff(record, h.reg.records, cmp.Comparer(func(a, b identity.ID) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			if len(h.reg.events) != 1 {
				t.Fatalf("%d events", len(h.reg.events))
			}
			e := h.reg.events[0]
			if e.Action != audit.SVIDIssued || e.Outcome != audit.Success || e.Object.Name != "spiffe://td/web" || !strings.HasPrefix(e.Object.Detail, "probe for host") ||
				e.Object.Serial != identity.Serial(leaf) || !e.Object.NotAfter.Equal(leaf.NotAfter) || (e.Message == "") != (flaw == ca.NoFlaw) || !strings.HasSuffix(e.Message, string(flaw)) {
				t.Errorf("got %+v, %+v", e, e.Object)
			}
		})
	}
}

// The second name of a certificate with two is in no mesh.
func TestProbeOfTwoNames(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.SetProbes(probes())
	chain, err := h.IssueProbe(t.Context(), "host-1", id("web"), ca.TwoNames, request(newKey(), &x509.CertificateRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if u := chain[0].URIs; len(u) != 2 || u[0].String() != "spiffe://td/web" || u[1].String() != "spiffe://td/parley/stranger" {
		t.Errorf("got %v", u)
	}
}

func TestIssueProbeRefuses(t *testing.T) {
	t.Parallel()
	good := request(newKey(), &x509.CertificateRequest{})
	for name, tt := range map[string]struct {
		probes []enrol.Probes // one after another
		host   string
		id     identity.ID
		flaw   ca.Flaw
		csr    []byte
		code   fault.Code
		reason string
	}{
		"before any verification": {nil, "host-1", id("web"), "", good, fault.NotSubject, "no_verification"},
		"after it":                {[]enrol.Probes{probes(), nil}, "host-1", id("web"), "", good, fault.NotSubject, "no_verification"},
		"after another":           {[]enrol.Probes{probes(), {"host-3": {id("web"): true}}}, "host-1", id("web"), "", good, fault.NotSubject, "no_verification"},
		"another host":            {[]enrol.Probes{probes()}, "host-2", id("web"), "", good, fault.NotSubject, "no_verification"},
		"unknown host":            {[]enrol.Probes{probes()}, "host-9", id("web"), "", good, fault.NotSubject, "no_verification"},
		"no host":                 {[]enrol.Probes{probes()}, "", id("web"), "", good, fault.NotSubject, "no_verification"},
		"another identity":        {[]enrol.Probes{probes()}, "host-1", id("orders"), "", good, fault.NotSubject, "no_verification"},
		"one that is not":         {[]enrol.Probes{probes()}, "host-1", id("late"), "", good, fault.NotSubject, "no_verification"},
		"a subject, flawed":       {[]enrol.Probes{probes()}, "host-1", id("gateway/edge"), ca.Expired, good, fault.NotSubject, "no_verification"},
		"nobody":                  {[]enrol.Probes{{"host-1": {identity.ID{}: true}}}, "host-1", identity.ID{}, "", good, fault.NotSubject, "no_verification"},
		"no request":              {[]enrol.Probes{probes()}, "host-1", id("web"), "", nil, fault.CertUnusable, "request_invalid"},
		"unknown flaw":            {[]enrol.Probes{probes()}, "host-1", id("web"), "banned", good, fault.CertUnusable, ""},
		"other trust domain":      {[]enrol.Probes{{"host-1": {must(identity.ParseID("spiffe://other/web")): true}}}, "host-1", must(identity.ParseID("spiffe://other/web")), "", good, fault.CertUnusable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			for _, p := range tt.probes {
				h.SetProbes(p)
			}
			chain, err := h.IssueProbe(t.Context(), tt.host, tt.id, tt.flaw, tt.csr)
			wantFault(t, err, tt.code)
			if chain != nil || len(h.reg.records) != 0 {
				t.Error("something was issued")
			}
			if tt.reason == "" {
				return
			}
			if len(h.reg.events) != 1 {
				t.Fatalf("%d events", len(h.reg.events))
			}
			e := h.reg.events[0]
			if e.Action != audit.IssueRefused || e.Outcome != audit.Denied || e.Reason != tt.reason || e.Object.Name != tt.id.String() || !strings.HasPrefix(e.Object.Detail, "probe for host") {
				t.Errorf("got %+v, %+v", e, e.Object)
			}
		})
	}
}

// Leave to have probes is none to have anything else.
func TestProbesAreNoSubjects(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.SetProbes(probes())
	_, err := h.Issue(t.Context(), "host-2", id("orders"), request(newKey(), &x509.CertificateRequest{}))
	wantFault(t, err, fault.NotSubject)
}

// That a banned identity is refused is what is tried, so its certificates are needed.
func TestBannedIsIssuedProbes(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.SetBanned([]identity.ID{id("web")})
	h.SetProbes(probes())
	if _, err := h.IssueProbe(t.Context(), "host-1", id("web"), "", request(newKey(), &x509.CertificateRequest{})); err != nil {
		t.Error(err)
	}
	_, err := h.Issue(t.Context(), "host-1", id("web"), request(newKey(), &x509.CertificateRequest{}))
	wantFault(t, err, fault.NotSubject)
}

func TestProbeIsNotReleasedUnrecorded(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.SetProbes(probes())
	h.reg.err = errors.New("disk full")
	chain, err := h.IssueProbe(t.Context(), "host-1", id("web"), "", request(newKey(), &x509.CertificateRequest{}))
	if !errors.Is(err, h.reg.err) || chain != nil {
		t.Errorf("got %v, %v", chain, err)
	}
}

// A verification that ends while the registry writes has no use for what it wrote.
func TestVerificationThatEndsMeanwhile(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		next enrol.Probes
		ok   bool
	}{
		"ends": {nil, false}, "another": {enrol.Probes{"host-2": {id("web"): true}}, false}, "goes on": {probes(), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.SetProbes(probes())
			h.reg.during = func() { h.SetProbes(tt.next) }
			chain, err := h.IssueProbe(t.Context(), "host-1", id("web"), "", request(newKey(), &x509.CertificateRequest{}))
			if (err == nil) != tt.ok || (chain != nil) != tt.ok {
				t.Fatalf("got %v, %v", chain, err)
			}
			if tt.ok {
				return
			}
			wantFault(t, err, fault.NotSubject)
			if n := len(h.reg.events); n != 2 || h.reg.events[1].Reason != "no_verification" {
				t.Errorf("%d events", n)
			}
		})
	}
}

func TestSetProbesKeepsNothingShared(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	p := probes()
	h.SetProbes(p)
	p["host-1"][id("gateway/edge")], p["host-9"] = true, map[identity.ID]bool{id("web"): true}
	for host, of := range map[string]identity.ID{"host-1": id("gateway/edge"), "host-9": id("web")} {
		if _, err := h.IssueProbe(t.Context(), host, of, "", request(newKey(), &x509.CertificateRequest{})); err == nil {
			t.Errorf("%s has one as %s", host, of)
		}
	}
}
