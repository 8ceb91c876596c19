package interop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// play is what this test binary does as a program of its own: an unchanged
// go-spiffe client, or a server that another suite starts.
func play(role string) int {
	if addr, ok := strings.CutPrefix(role, "echo:"); ok {
		return echoRole(addr)
	}
	for name, talk := range map[string]func(web, lines string) int{"listen:": listenRole, "call:": callRole} {
		if addrs, ok := strings.CutPrefix(role, name); ok {
			web, lines, _ := strings.Cut(addrs, ",")
			return talk(web, lines)
		}
	}
	if url, ok := strings.CutPrefix(role, "load:"); ok {
		return loadRole(url)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var err error
	switch role {
	case "fetch":
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err = workloadapi.FetchX509SVID(ctx)
	case "watch":
		err = watch(ctx)
	case "take":
		err = take(ctx, os.Getenv("PARLEY_INTEROP_ID"))
	case "conformance":
		err = conformance()
	default:
		err = errors.New("no such role")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// take prints the key and the chain of the X509-SVID with an id, and what its trust
// domain trusts, as PEM.
func take(ctx context.Context, id string) error {
	x, err := workloadapi.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	for _, svid := range x.SVIDs {
		if svid.ID.String() != id {
			continue
		}
		chain, key, err := svid.Marshal()
		if err != nil {
			return err
		}
		bundle, err := x.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return err
		}
		roots, err := bundle.Marshal()
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(material{chain, key, roots})
	}
	return errors.New("no such identity")
}

// material is what take prints.
type material struct{ Chain, Key, Roots []byte }

// watch follows X.509 and JWT SVIDs through three renewals, and validates a
// token with the bundle and with the Workload API.
func watch(ctx context.Context) error {
	x509Source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer x509Source.Close()
	jwtSource, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer jwtSource.Close()
	last := ""
	for renewals := -1; renewals < 3; {
		svid, err := x509Source.GetX509SVID()
		if err != nil {
			return err
		}
		if serial := svid.Certificates[0].SerialNumber.String(); serial != last {
			renewals++
			last = serial
			fmt.Println("x509", svid.ID, serial)
			if err := tryToken(ctx, jwtSource); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %d renewals: %w", renewals, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

func tryToken(ctx context.Context, source *workloadapi.JWTSource) error {
	token, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "spiffe://interop.example/other"})
	if err != nil {
		return err
	}
	parsed, err := jwtsvid.ParseAndValidate(token.Marshal(), source, []string{"spiffe://interop.example/other"})
	if err != nil {
		return fmt.Errorf("by the bundle: %w", err)
	}
	if _, err := workloadapi.ValidateJWTSVID(ctx, token.Marshal(), "spiffe://interop.example/other"); err != nil {
		return fmt.Errorf("by the Workload API: %w", err)
	}
	if _, err := workloadapi.ValidateJWTSVID(ctx, token.Marshal(), "spiffe://interop.example/third"); err == nil {
		return errors.New("a token for another audience was accepted")
	}
	fmt.Println("jwt", parsed.ID, parsed.Expiry.UTC())
	return nil
}

// ownClient is a copy of this program, which every user may run.
func ownClient(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(shortDir(t), "client")
	run(t, "cp", self, mine)
	run(t, "chmod", "755", mine)
	return mine
}

// TestGoSPIFFEThroughThreeRenewals is the reference client, unchanged.
func TestGoSPIFFEThroughThreeRenewals(t *testing.T) {
	mine := ownClient(t)
	r := start(t, fmt.Sprintf(`
trust_domain: interop.example
leaf_ttl: 12s
services:
  client:
    runs_as: {exe: %s}
    inbound: {listen: "127.0.0.1:%d", app: "127.0.0.1:1"}
`, mine, freePort(t)))
	cmd := exec.Command(mine)
	cmd.Env = []string{"PARLEY_INTEROP_ROLE=watch", "SPIFFE_ENDPOINT_SOCKET=unix://" + r.socket()}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go-spiffe: %v\n%s", err, out)
	}
	if n := strings.Count(string(out), "x509 spiffe://interop.example/client"); n != 4 {
		t.Errorf("%d X.509-SVIDs seen, want 4:\n%s", n, out)
	}
	if n := strings.Count(string(out), "jwt spiffe://interop.example/client"); n != 4 {
		t.Errorf("%d JWT-SVIDs seen, want 4:\n%s", n, out)
	}
}
