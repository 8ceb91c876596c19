package workload_test

import (
	"context"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/workload/xtest"
)

// eventually asks until yes says so.
func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	for until := time.Now().Add(5 * time.Second); !yes(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("never: %s", what)
		}
	}
}

// An unchanged go-spiffe fetches and watches X.509 and JWT through rotations of
// leaf and root.
func TestGoSpiffe(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	a.Set(a.Identity("orders", 1))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	at := workloadapi.WithClientOptions(workloadapi.WithAddr(a.URI()))
	x509s, err := workloadapi.NewX509Source(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	defer x509s.Close()
	jwts, err := workloadapi.NewJWTSource(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	defer jwts.Close()
	td := spiffeid.RequireTrustDomainFromString("shop.example")

	for round := range 3 {
		id := a.Identity("orders", uint64(round+2))
		cred, _ := id.Source.Credential()
		a.Set(id)
		eventually(t, "the new leaf", func() bool {
			svid, err := x509s.GetX509SVID()
			return err == nil && svid.ID.String() == "spiffe://shop.example/orders" && svid.Certificates[0].Equal(cred.Chain[0])
		})
	}
	a.CA = mtlstest.NewCA(t, "shop.example") // another root
	a.Set(a.Identity("orders", 9))
	eventually(t, "the new root", func() bool {
		b, err := x509s.GetX509BundleForTrustDomain(td)
		return err == nil && len(b.X509Authorities()) == 1 && b.X509Authorities()[0].Equal(a.CA.Root)
	})

	svid, err := jwts.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "payments"})
	if err != nil || svid.ID.String() != "spiffe://shop.example/orders" {
		t.Fatalf("got %v, %v", svid, err)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), jwts, []string{"payments"}); err != nil {
		t.Errorf("not valid by the bundles that were fetched: %v", err)
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(a.URI()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if got, err := client.ValidateJWTSVID(ctx, svid.Marshal(), "payments"); err != nil || got.ID != svid.ID {
		t.Errorf("validate: got %v, %v", got, err)
	}
	if _, err := client.ValidateJWTSVID(ctx, svid.Marshal(), "ledger"); err == nil {
		t.Error("valid for another audience")
	}
	bundles, err := client.FetchX509Bundles(ctx)
	if err != nil || !bundles.Has(td) {
		t.Errorf("bundles: got %v, %v", bundles, err)
	}
}

// A process that gets its identity later needs no restart.
func TestGoSpiffeWaitsForAnIdentity(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() {
		time.Sleep(50 * time.Millisecond)
		a.Set(a.Identity("orders", 1))
	}()
	src, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(a.URI())))
	if err != nil {
		t.Fatal(err)
	}
	src.Close()
}
