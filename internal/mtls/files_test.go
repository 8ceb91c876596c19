package mtls_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/mtls/xtest"
)

// A hand clock stands still until it is moved.
type hand struct {
	clock.System
	at atomic.Int64
}

func (h *hand) Now() time.Time { return time.Unix(h.at.Load(), 0) }

func TestFiles(t *testing.T) {
	t.Parallel()
	ca, dir := xtest.NewCA(t, "shop.example"), t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	clk := &hand{}
	clk.at.Store(1_800_000_000)
	age := time.Duration(0)
	write := func(cert []byte, key any) {
		t.Helper()
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		age += time.Second // file systems round times
		for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
			if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(name, time.Time{}, time.Now().Add(age)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := mtls.OpenFiles(certFile, keyFile, clk); fault.All(err)[0].Code != fault.KeyUnreadable {
		t.Errorf("missing files: %v", err)
	}
	one, oneKey := ca.Sign(t, xtest.Leaf(t, ca.ID(t, "one"), time.Hour))
	two, twoKey := ca.Sign(t, xtest.Leaf(t, ca.ID(t, "two"), time.Hour))
	write(one.Raw, twoKey)
	if _, err := mtls.OpenFiles(certFile, keyFile, clk); fault.All(err)[0].Code != fault.CertUnusable {
		t.Errorf("another key: %v", err)
	}
	write(one.Raw, oneKey)
	files, err := mtls.OpenFiles(certFile, keyFile, clk)
	if err != nil {
		t.Fatal(err)
	}
	want := func(step string, leaf *x509.Certificate) {
		t.Helper()
		if got, err := files.Certificate(); err != nil || string(got.Certificate[0]) != string(leaf.Raw) {
			t.Errorf("%s: another certificate, %v", step, err)
		}
	}
	want("first", one)
	write(two.Raw, oneKey)
	clk.at.Add(10)
	want("half replaced", one)
	write(two.Raw, twoKey)
	want("not looked at yet", one)
	clk.at.Add(10)
	want("replaced", two)
	_ = os.Remove(keyFile)
	clk.at.Add(10)
	want("removed", two)
}
