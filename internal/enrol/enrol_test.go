package enrol_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/keys"
)

// A registry keeps everything in memory.
type registry struct {
	mu      sync.Mutex // guards the rest
	records []enrol.Record
	events  []*audit.Event
	err     error
	// during, if set, runs in the middle of Issue.
	during func()
}

func (r *registry) Issue(_ context.Context, rec enrol.Record, e *audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.during != nil {
		r.during()
	}
	if r.err != nil {
		return r.err
	}
	r.records, r.events = append(r.records, rec), append(r.events, e)
	return nil
}

func (r *registry) Refused(_ context.Context, e *audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.events = append(r.events, e)
	return nil
}

var discard = slog.New(slog.DiscardHandler)

type house struct {
	*enrol.Registrar
	ca  *ca.Authority
	reg *registry
}

// newHouse is a registrar that knows web and a gateway.
func newHouse(t testing.TB) house {
	t.Helper()
	dir := t.TempDir()
	m, _, err := keys.OpenMaster(filepath.Join(dir, "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	a, _, err := ca.Open(ca.Config{
		Dir: filepath.Join(dir, "ca"), TrustDomain: must(identity.ParseTrustDomain("td")),
		Master: m, Clock: clock.System{}, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	reg := new(registry)
	h := house{enrol.New(enrol.Config{Authority: a, Registry: reg, Clock: clock.System{}, Logger: logger, Host: "server-1"}), a, reg}
	h.SetSubjects(subjects())
	return h
}

func subjects() []enrol.Subject {
	return []enrol.Subject{
		{ID: id("web"), TTL: time.Hour},
		{ID: id("gateway/edge"), TTL: time.Hour, DNSNames: []string{"shop.example"}, IPs: []net.IP{net.ParseIP("::1")}},
	}
}

func id(name string) identity.ID { return must(identity.ParseID("spiffe://td/" + name)) }

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func request(key crypto.Signer, t *x509.CertificateRequest) []byte {
	return must(x509.CreateCertificateRequest(rand.Reader, t, key))
}

func wantFault(t testing.TB, err error, code fault.Code) {
	t.Helper()
	var f *fault.Fault
	if !errors.As(err, &f) || f.Code != code {
		t.Fatalf("got %v, want a fault %s", err, code)
	}
}

func TestIssue(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	key := newKey()
	chain, err := h.Issue(t.Context(), "host-1", id("web"), request(key, &x509.CertificateRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := identity.NewCredential(chain, key)
	if err != nil || c.ID != id("web") {
		t.Fatalf("got %v, %v", c, err)
	}
	trust := &identity.Trust{
		Bundles: map[identity.TrustDomain]*identity.Bundle{h.Bundle().TrustDomain: h.Bundle()},
		Members: map[identity.ID]bool{id("web"): true},
	}
	if _, err := trust.Verify(chain, time.Now()); err != nil {
		t.Error(err)
	}
	leaf := chain[0]
	want := []enrol.Record{{
		Serial: identity.Serial(leaf), ID: id("web"), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		Fingerprint: identity.Fingerprint(leaf), Host: "host-1", Kind: enrol.KindX509,
	}}
	if diff := cmp.Diff(want, h.reg.records, cmp.Comparer(func(a, b identity.ID) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if len(h.reg.events) != 1 {
		t.Fatalf("%d events", len(h.reg.events))
	}
	e := h.reg.events[0]
	if e.Action != audit.SVIDIssued || e.Outcome != audit.Success || e.Class != audit.Security || e.Host != "server-1" || e.Reporter != "server" ||
		e.ID == "" || e.Time.IsZero() || e.Object.Name != "spiffe://td/web" || e.Object.Serial != identity.Serial(leaf) || !e.Object.NotAfter.Equal(leaf.NotAfter) {
		t.Errorf("got %+v, %+v", e, e.Object)
	}
}

// SPIRE's SPI-01-004 and Consul's CVE-2022-40716: what a request asks for, it gets
// only by the revision.
func TestOnlyTheKeyOfARequestCounts(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	key := newKey()
	csr := request(key, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "gateway"},
		DNSNames: []string{"evil.example"}, IPAddresses: []net.IP{net.IPv4(1, 2, 3, 4)}, EmailAddresses: []string{"a@b.example"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "td", Path: "/gateway/edge"}},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}, // CA: true
			{Id: []int{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 1, 6}},          // keyCertSign, cRLSign
		},
	})
	chain, err := h.Issue(t.Context(), "host-1", id("web"), csr)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if got, err := identity.LeafID(leaf); err != nil || got != id("web") {
		t.Errorf("got %q, %v", got, err)
	}
	if leaf.IsCA || len(leaf.Subject.Names)+len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("the request left its mark: %v %v", leaf.Subject, leaf.DNSNames)
	}
	chain, err = h.Issue(t.Context(), "host-1", id("gateway/edge"), csr)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"shop.example"}, chain[0].DNSNames); diff != "" || len(chain[0].IPAddresses) != 1 {
		t.Errorf("%s%v", diff, chain[0].IPAddresses)
	}
}

func TestIssueRefuses(t *testing.T) {
	t.Parallel()
	good := request(newKey(), &x509.CertificateRequest{})
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	large := request(newKey(), &x509.CertificateRequest{
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 2, 3}, Value: make([]byte, 20<<10)}},
	})
	tests := []struct {
		name   string
		id     identity.ID
		csr    []byte
		code   fault.Code
		reason string
	}{
		{"unknown", id("orders"), good, fault.NotSubject, "not_in_revision"},
		{"nobody", identity.ID{}, good, fault.NotSubject, "not_in_revision"},
		{"trust domain", must(identity.ParseID("spiffe://td")), good, fault.NotSubject, "not_in_revision"},
		{"other trust domain", must(identity.ParseID("spiffe://other/web")), good, fault.NotSubject, "not_in_revision"},
		{"no request", id("web"), nil, fault.CertUnusable, "request_invalid"},
		{"no DER", id("web"), []byte("-----BEGIN CERTIFICATE REQUEST-----"), fault.CertUnusable, "request_invalid"},
		{"bytes behind it", id("web"), append(append([]byte(nil), good...), 0), fault.CertUnusable, "request_invalid"},
		{"oversized", id("web"), large, fault.CertUnusable, "request_invalid"},
		{"not its own key", id("web"), forged, fault.CertUnusable, "request_invalid"},
		{"weak curve", id("web"), request(must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)), &x509.CertificateRequest{}), fault.CertUnusable, "request_invalid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			chain, err := h.Issue(t.Context(), "host-1", tt.id, tt.csr)
			wantFault(t, err, tt.code)
			if chain != nil || len(h.reg.records) != 0 {
				t.Error("something was issued")
			}
			if len(h.reg.events) != 1 {
				t.Fatalf("%d events", len(h.reg.events))
			}
			e := h.reg.events[0]
			if e.Action != audit.IssueRefused || e.Outcome != audit.Denied || e.Reason != tt.reason || e.Object.Name != tt.id.String() || e.Class != audit.Security {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestRSAIsIssuedTo(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	key := must(rsa.GenerateKey(rand.Reader, 2048))
	if _, err := h.Issue(t.Context(), "h", id("web"), request(key, &x509.CertificateRequest{})); err != nil {
		t.Error(err)
	}
}

func TestIssueJWT(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	token, expires, err := h.IssueJWT(t.Context(), "host-1", id("web"), []string{"orders"})
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := jose.VerifySVID(token, "orders", func(identity.TrustDomain) *identity.Bundle { return h.Bundle() }, time.Now())
	if err != nil || got != id("web") {
		t.Errorf("got %q, %v", got, err)
	}
	if left := time.Until(expires); left > enrol.JWTTTL || left < enrol.JWTTTL-5*time.Second {
		t.Errorf("lives for %s", left)
	}
	sum := sha256.Sum256([]byte(token))
	r, e := h.reg.records[0], h.reg.events[0]
	if r.Kind != enrol.KindJWT || r.Fingerprint != hex.EncodeToString(sum[:]) || r.Serial != r.Fingerprint[:32] || !r.NotAfter.Equal(expires) || r.Host != "host-1" {
		t.Errorf("got %+v", r)
	}
	if e.Action != audit.JWTIssued || e.Outcome != audit.Success || e.Object.Kind != "token" {
		t.Errorf("got %+v", e)
	}
	h.SetSubjects([]enrol.Subject{{ID: id("web"), TTL: 12 * time.Second}})
	if _, expires, err = h.IssueJWT(t.Context(), "host-1", id("web"), []string{"orders"}); err != nil || time.Until(expires) > 12*time.Second {
		t.Errorf("a token outlives its subject's certificates: %s, %v", expires, err)
	}
}

func TestIssueJWTRefuses(t *testing.T) {
	t.Parallel()
	many := make([]string, 9)
	for i := range many {
		many[i] = "x"
	}
	tests := []struct {
		name     string
		id       identity.ID
		audience []string
		reason   string
	}{
		{"unknown", id("orders"), []string{"x"}, "not_in_revision"},
		{"no audience", id("web"), nil, "audience_invalid"},
		{"empty audience", id("web"), []string{""}, "audience_invalid"},
		{"too many", id("web"), many, "audience_invalid"},
		{"too long", id("web"), []string{string(make([]byte, 513))}, "audience_invalid"},
		{"not UTF-8", id("web"), []string{"\xff"}, "audience_invalid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			token, _, err := h.IssueJWT(t.Context(), "host-1", tt.id, tt.audience)
			if err == nil || token != "" || len(h.reg.records) != 0 {
				t.Fatalf("got %q, %v", token, err)
			}
			if len(h.reg.events) != 1 || h.reg.events[0].Reason != tt.reason || h.reg.events[0].Action != audit.IssueRefused {
				t.Errorf("got %+v", h.reg.events)
			}
		})
	}
}

func TestNothingIsReleasedUnrecorded(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	full := errors.New("disk full")
	h.reg.err = full
	if chain, err := h.Issue(t.Context(), "h", id("web"), request(newKey(), &x509.CertificateRequest{})); !errors.Is(err, full) || chain != nil {
		t.Errorf("got %v, %v", chain, err)
	}
	if token, _, err := h.IssueJWT(t.Context(), "h", id("web"), []string{"x"}); !errors.Is(err, full) || token != "" {
		t.Errorf("got %q, %v", token, err)
	}
	_, err := h.Issue(t.Context(), "h", id("orders"), nil)
	wantFault(t, err, fault.NotSubject)
	if !errors.Is(err, full) {
		t.Errorf("the unrecorded refusal is %v", err)
	}
}

func TestSubjectThatLeavesMeanwhile(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		next []enrol.Subject
		ok   bool
	}{
		{"leaves", nil, false},
		{"other names", []enrol.Subject{{ID: id("web"), TTL: time.Hour, DNSNames: []string{"a.example"}}}, false},
		{"other life", []enrol.Subject{{ID: id("web"), TTL: time.Minute}}, false},
		{"stays", subjects(), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.reg.during = func() { h.SetSubjects(tt.next) }
			chain, err := h.Issue(t.Context(), "h", id("web"), request(newKey(), &x509.CertificateRequest{}))
			if (err == nil) != tt.ok || (chain != nil) != tt.ok {
				t.Fatalf("got %v, %v", chain, err)
			}
			if tt.ok {
				return
			}
			wantFault(t, err, fault.NotSubject)
			if n := len(h.reg.events); n != 2 || h.reg.events[1].Reason != "revision_changed" {
				t.Errorf("%d events", n)
			}
		})
	}
}

func TestSetSubjectsKeepsNothingShared(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	given := subjects()
	h.SetSubjects(given)
	given[1].DNSNames[0], given[1].IPs[0][15] = "evil.example", 9
	chain, err := h.Issue(t.Context(), "h", id("gateway/edge"), request(newKey(), &x509.CertificateRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if chain[0].DNSNames[0] != "shop.example" || !chain[0].IPAddresses[0].Equal(net.ParseIP("::1")) {
		t.Errorf("got %v %v", chain[0].DNSNames, chain[0].IPAddresses)
	}
}

func TestNobodyBeforeTheFirstRevision(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := enrol.New(enrol.Config{Authority: h.ca, Registry: h.reg, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler), Host: "h"})
	_, err := r.Issue(t.Context(), "h", id("web"), request(newKey(), &x509.CertificateRequest{}))
	wantFault(t, err, fault.NotSubject)
}

// With revisions changing under it, nobody outside both is ever issued to, and
// every certificate that came out is on record once.
func TestIssueDuringRevisions(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	csr := request(newKey(), &x509.CertificateRequest{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	out := map[string]bool{}
	for i := range 4 {
		wg.Go(func() {
			for range 25 {
				name := []string{"web", "gateway/edge", "orders"}[i%3]
				chain, err := h.Issue(context.Background(), "h", id(name), csr)
				if err == nil && name == "orders" {
					t.Error("orders was issued to")
				}
				if err == nil {
					mu.Lock()
					out[identity.Serial(chain[0])] = true
					mu.Unlock()
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 200 {
			h.SetSubjects(subjects()[i%2:])
		}
		h.SetSubjects(subjects())
	})
	wg.Wait()
	recorded := map[string]bool{}
	for _, r := range h.reg.records {
		if recorded[r.Serial] {
			t.Errorf("%s twice", r.Serial)
		}
		recorded[r.Serial] = true
	}
	for s := range out {
		if !recorded[s] {
			t.Errorf("%s was released and not recorded", s)
		}
	}
	if len(out) == 0 {
		t.Error("nothing was issued")
	}
}

// FuzzIssue: no request makes it panic, and what comes out has the subject's name
// only.
func FuzzIssue(f *testing.F) {
	h := newHouse(f)
	f.Add(request(newKey(), &x509.CertificateRequest{}))
	f.Add(request(newKey(), &x509.CertificateRequest{DNSNames: []string{"a"}, Subject: pkix.Name{CommonName: "x"}}))
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, csr []byte) {
		chain, err := h.Issue(context.Background(), "h", id("web"), csr)
		if err != nil {
			return
		}
		if got, err := identity.LeafID(chain[0]); err != nil || got != id("web") || len(chain[0].DNSNames) > 0 {
			t.Fatalf("issued as %q, %v", got, err)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
