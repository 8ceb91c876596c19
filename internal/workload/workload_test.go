package workload_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/parleymesh/parley/internal/audit"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/workload"
	"github.com/parleymesh/parley/internal/workload/xtest"
)

func dial(t *testing.T, a *xtest.API) (*grpc.ClientConn, workloadpb.SpiffeWorkloadAPIClient) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+a.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, workloadpb.NewSpiffeWorkloadAPIClient(conn)
}

func withHeader(t *testing.T, values ...string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	for _, v := range values {
		ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", v)
	}
	return ctx
}

// first is the outcome of every call of the API; a stream's is its first message's.
func first(ctx context.Context, api workloadpb.SpiffeWorkloadAPIClient) map[string]error {
	errs := map[string]error{}
	stream := func(name string, recv func() error, err error) {
		if err == nil {
			err = recv()
		}
		errs[name] = err
	}
	s1, err := api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	stream("FetchX509SVID", func() error { _, err := s1.Recv(); return err }, err)
	s2, err := api.FetchX509Bundles(ctx, &workloadpb.X509BundlesRequest{})
	stream("FetchX509Bundles", func() error { _, err := s2.Recv(); return err }, err)
	s3, err := api.FetchJWTBundles(ctx, &workloadpb.JWTBundlesRequest{})
	stream("FetchJWTBundles", func() error { _, err := s3.Recv(); return err }, err)
	s4, err := api.FetchWITSVID(ctx, &workloadpb.WITSVIDRequest{})
	stream("FetchWITSVID", func() error { _, err := s4.Recv(); return err }, err)
	s5, err := api.FetchWITBundles(ctx, &workloadpb.WITBundlesRequest{})
	stream("FetchWITBundles", func() error { _, err := s5.Recv(); return err }, err)
	jwt, err := api.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"orders"}})
	errs["FetchJWTSVID"] = err
	token := "x"
	if err == nil {
		token = jwt.Svids[0].Svid
	}
	_, errs["ValidateJWTSVID"] = api.ValidateJWTSVID(ctx, &workloadpb.ValidateJWTSVIDRequest{Audience: "orders", Svid: token})
	return errs
}

func TestEveryCallWantsHeaderAndIdentity(t *testing.T) {
	t.Parallel()
	wit := []string{"FetchWITSVID", "FetchWITBundles"}
	for name, tc := range map[string]struct {
		header   []string
		identity bool
		want     codes.Code
		wit      codes.Code
	}{
		"entitled":     {[]string{"true"}, true, codes.OK, codes.Unimplemented},
		"no identity":  {[]string{"true"}, false, codes.PermissionDenied, codes.Unimplemented},
		"no header":    {nil, true, codes.InvalidArgument, codes.InvalidArgument},
		"false":        {[]string{"false"}, true, codes.InvalidArgument, codes.InvalidArgument},
		"another case": {[]string{"True"}, true, codes.InvalidArgument, codes.InvalidArgument},
		"twice":        {[]string{"true", "true"}, true, codes.InvalidArgument, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := xtest.Start(t)
			if tc.identity {
				a.Set(a.Identity("orders", 1))
			}
			_, api := dial(t, a)
			for call, err := range first(withHeader(t, tc.header...), api) {
				want := tc.want
				if slices.Contains(wit, call) {
					want = tc.wit
				}
				if got := status.Code(err); got != want {
					t.Errorf("%s: got %v (%v), want %v", call, got, err, want)
				}
			}
		})
	}
}

func TestUnknownServiceIsUnimplemented(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	conn, _ := dial(t, a)
	err := conn.Invoke(withHeader(t, "true"), "/Another/Call", &workloadpb.JWTSVIDRequest{}, &workloadpb.JWTSVIDResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v", err)
	}
}

func TestX509SVIDIsAsTheStandardHasIt(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	partner := mtlstest.NewCA(t, "partner.example")
	orders, web := a.Identity("orders", 1, partner), a.Identity("web", 1)
	a.Set(orders)
	_, api := dial(t, a)
	stream, err := api.FetchX509SVID(withHeader(t, "true"), &workloadpb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	cred, _ := orders.Source.Credential()
	if len(msg.Svids) != 1 {
		t.Fatalf("got %d SVIDs", len(msg.Svids))
	}
	s := msg.Svids[0]
	if s.SpiffeId != "spiffe://shop.example/orders" || s.Hint != "" || !cmp.Equal(s.X509Svid, cred.Chain[0].Raw) || !cmp.Equal(s.Bundle, a.CA.Root.Raw) {
		t.Errorf("got %q, hint %q", s.SpiffeId, s.Hint)
	}
	key, err := x509.ParsePKCS8PrivateKey(s.X509SvidKey)
	if k, ok := key.(*ecdsa.PrivateKey); !ok || !k.Equal(cred.Key) {
		t.Errorf("the key is not the certificate's: %v", err)
	}
	want := map[string][]byte{"spiffe://partner.example": partner.Root.Raw}
	if diff := cmp.Diff(want, msg.FederatedBundles); diff != "" {
		t.Error(diff)
	}

	a.Touch() // nothing is different: no message
	a.Set(orders, web)
	if msg, err = stream.Recv(); err != nil || len(msg.Svids) != 2 || msg.Svids[0].Hint != "orders" || msg.Svids[1].Hint != "web" {
		t.Errorf("got %v, %v", msg.GetSvids(), err)
	}
}

func TestStreamWaitsForTheFirstCredential(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	id := a.Identity("orders", 1)
	src := id.Source.(*mtlstest.Source)
	cred, _ := src.Credential()
	src.SetCredential(nil)
	a.Set(id)
	_, api := dial(t, a)
	stream, err := api.FetchX509SVID(withHeader(t, "true"), &workloadpb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { _, err := stream.Recv(); got <- err }()
	select {
	case err := <-got:
		t.Fatalf("an answer without a credential: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	src.SetCredential(cred)
	a.Touch()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestStreamEnds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end  func(*xtest.API)
		want []codes.Code
	}{
		"identity withdrawn": {func(a *xtest.API) { a.Set() }, []codes.Code{codes.PermissionDenied}},
		"process ended":      {func(a *xtest.API) { a.Subjects()[0].End() }, []codes.Code{codes.Unavailable, codes.Canceled}},
		"server stopped":     {func(a *xtest.API) { a.Server.Stop() }, []codes.Code{codes.Unavailable, codes.Canceled}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := xtest.Start(t)
			a.Set(a.Identity("orders", 1))
			_, api := dial(t, a)
			stream, err := api.FetchX509SVID(withHeader(t, "true"), &workloadpb.X509SVIDRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			tc.end(a)
			if _, err := stream.Recv(); !slices.Contains(tc.want, status.Code(err)) {
				t.Errorf("got %v", err)
			}
			if name == "identity withdrawn" {
				return // the connection stays
			}
			select {
			case <-a.Subjects()[0].Closed:
			case <-time.After(5 * time.Second):
				t.Error("the process was not released")
			}
		})
	}
}

func TestRecordsRefusedAndServed(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	_, api := dial(t, a)
	for range 2 { // a client that tries again is recorded once
		first(withHeader(t, "true"), api)
	}
	a.Set(a.Identity("orders", 1))
	for range 2 {
		first(withHeader(t, "true"), api)
	}
	type line struct {
		Action           audit.Action
		Outcome          audit.Outcome
		Reason, ID, Exe  string
		PID, UID, Object any
	}
	var got []line
	for _, e := range a.Events() {
		if e.ID == "" || e.Time.IsZero() || e.Class != audit.Security || e.Host != "host1" || e.Reporter != "agent" {
			t.Errorf("incomplete event %+v", e)
		}
		l := line{e.Action, e.Outcome, e.Reason, e.Caller.ID.String(), e.Caller.Exe, e.Caller.PID, *e.Caller.UID, ""}
		if e.Object != nil {
			l.Object = e.Object.Name
		}
		got = append(got, l)
	}
	want := []line{
		{audit.WorkloadRefused, audit.Denied, "no_identity", "", "/usr/bin/orders", 4711, 1000, ""},
		{audit.WorkloadServed, audit.Success, "", "spiffe://shop.example/orders", "/usr/bin/orders", 4711, 1000, "spiffe://shop.example/orders"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAProcessThatCannotBeAttestedIsToldAndRecorded(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	a.Set(a.Identity("orders", 1))
	a.FailAttest(errors.New("the process is in another process namespace"))
	_, api := dial(t, a)
	for call, err := range first(withHeader(t, "true"), api) {
		if c := status.Code(err); c != codes.PermissionDenied && !strings.Contains(call, "WIT") {
			t.Errorf("%s: got %v", call, err)
		}
	}
	events := a.Events()
	if len(events) != 1 || events[0].Reason != "not_attested" || events[0].Caller.UID != nil {
		t.Errorf("got %+v", events)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	a.Set(a.Identity("orders", 1))

	t.Run("message", func(t *testing.T) {
		_, api := dial(t, a)
		_, err := api.FetchJWTSVID(withHeader(t, "true"), &workloadpb.JWTSVIDRequest{Audience: []string{strings.Repeat("x", 1<<20)}})
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v", err)
		}
	})
	t.Run("connections", func(t *testing.T) {
		var raw []net.Conn
		defer func() {
			for _, c := range raw {
				c.Close()
			}
		}()
		for range 40 {
			c, err := net.Dial("unix", a.Socket)
			if err != nil {
				t.Fatal(err)
			}
			raw = append(raw, c)
		}
		closed := 0
		for _, c := range raw {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			buf := make([]byte, 1)
			if _, err := c.Read(buf); err != nil && !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
				closed++
			}
		}
		// 32 of a process are served; those of the other subtest may still be open.
		if closed < 8 || closed > 10 {
			t.Errorf("%d of 40 were closed", closed)
		}
	})
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestJWTArguments(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	orders, web := a.Identity("orders", 1), a.Identity("web", 1)
	a.Set(orders, web)
	_, api := dial(t, a)
	many := slices.Repeat([]string{"a"}, 9)
	for name, tc := range map[string]struct {
		req  *workloadpb.JWTSVIDRequest
		want codes.Code
		ids  int
	}{
		"all":                {&workloadpb.JWTSVIDRequest{Audience: []string{"db"}}, codes.OK, 2},
		"one":                {&workloadpb.JWTSVIDRequest{Audience: []string{"db", "cache"}, SpiffeId: web.ID.String()}, codes.OK, 1},
		"another's":          {&workloadpb.JWTSVIDRequest{Audience: []string{"db"}, SpiffeId: "spiffe://shop.example/db"}, codes.PermissionDenied, 0},
		"no audience":        {&workloadpb.JWTSVIDRequest{}, codes.InvalidArgument, 0},
		"an empty audience":  {&workloadpb.JWTSVIDRequest{Audience: []string{""}}, codes.InvalidArgument, 0},
		"a long audience":    {&workloadpb.JWTSVIDRequest{Audience: []string{strings.Repeat("a", 513)}}, codes.InvalidArgument, 0},
		"too many audiences": {&workloadpb.JWTSVIDRequest{Audience: many}, codes.InvalidArgument, 0},
	} {
		resp, err := api.FetchJWTSVID(withHeader(t, "true"), tc.req)
		if status.Code(err) != tc.want || len(resp.GetSvids()) != tc.ids {
			t.Errorf("%s: got %d SVIDs, %v", name, len(resp.GetSvids()), err)
		}
		if tc.ids == 1 && (resp.Svids[0].Hint != "web" || resp.Svids[0].SpiffeId != web.ID.String()) {
			t.Errorf("%s: got %v", name, resp.Svids[0])
		}
	}
	for name, req := range map[string]*workloadpb.ValidateJWTSVIDRequest{
		"no audience": {Svid: "x"},
		"no token":    {Audience: "db"},
		"garbage":     {Audience: "db", Svid: "a.b.c"},
	} {
		if _, err := api.ValidateJWTSVID(withHeader(t, "true"), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("validate, %s: got %v", name, err)
		}
	}
}

func TestOneIdentityOfSeveralWithoutCredentialIsLeftOut(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	orders, web := a.Identity("orders", 1), a.Identity("web", 1)
	orders.Source.(*mtlstest.Source).SetCredential(nil)
	a.Set([]workload.Identity{orders, web}...)
	_, api := dial(t, a)
	stream, err := api.FetchX509SVID(withHeader(t, "true"), &workloadpb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := stream.Recv(); err != nil || len(msg.Svids) != 1 || msg.Svids[0].SpiffeId != web.ID.String() {
		t.Errorf("got %v, %v", msg, err)
	}
}
