package control_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

func TestStatusJoinsWhatRunsAndWhatIsDeclared(t *testing.T) {
	t.Parallel()
	h := applied(t)
	st, err := h.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.TrustDomain != "shop.example" || st.Revision != 1 || st.AppliedBy == "" || st.EdgesPeriod != 3600 || len(st.Services) != 3 || hasFinding(st, "revision_not_running") {
		t.Errorf("status %+v", st)
	}
	want := []api.EdgeStatus{
		{From: "", To: "gateway/edge", Declared: true},
		{From: "", To: "orders", Calls: 1, Refused: 1},
		{From: "gateway/edge", To: "orders", Declared: true},
		{From: "orders", To: "db", Declared: true},
		{From: "web", To: "orders", Calls: 7, Refused: 2, Declared: true},
	}
	if diff := cmp.Diff(want, st.Edges); diff != "" {
		t.Error(diff)
	}
}

func TestStatusBeforeTheFirstRevision(t *testing.T) {
	t.Parallel()
	w := try(newServer(t), newRequest("GET", "/v1/status", ""))
	if w.Code != http.StatusOK || bytes.Contains(w.Body.Bytes(), []byte("null")) || bytes.Contains(w.Body.Bytes(), []byte(`"applied"`)) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestSchemaIsJSON(t *testing.T) {
	t.Parallel()
	schema, err := serve(t).client.ConfigSchema(t.Context())
	if err != nil || !json.Valid(schema) || !bytes.Contains(schema, []byte("2020-12")) {
		t.Errorf("%.80s, %v", schema, err)
	}
}

func TestBundleIsTheRoots(t *testing.T) {
	t.Parallel()
	h := serve(t)
	if _, err := h.client.Bundle(t.Context()); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.NotFound {
		t.Errorf("without a root: %v", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	h.runtime.bundle = &identity.Bundle{Roots: []*x509.Certificate{root, root}}
	got, err := h.client.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, rest := pem.Decode(got)
	if first == nil || !bytes.Equal(first.Bytes, der) {
		t.Fatalf("got %s", got)
	}
	if second, rest := pem.Decode(rest); second == nil || len(rest) != 0 {
		t.Errorf("got %s", got)
	}
}

func TestCertificatesArePaged(t *testing.T) {
	t.Parallel()
	h := serve(t)
	var got []string
	p := api.ListCertificatesParams{Limit: 2}
	for {
		list, err := h.client.Certificates(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Items {
			got = append(got, c.Serial)
		}
		if p.Cursor = list.Next; p.Cursor == "" {
			break
		}
	}
	if diff := cmp.Diff([]string{"0a", "0b", "0c"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	v, err := serve(t).client.Version(t.Context())
	if err != nil || v.Version != "0.1.0" || v.API != 1 {
		t.Errorf("%+v, %v", v, err)
	}
}
