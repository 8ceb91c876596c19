package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// Limits of what inspect reads.
const (
	maxPEM          = 1 << 20
	maxCertificates = 100
)

// A certificate is what `cert inspect` tells of one.
type certificate struct {
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Key         string    `json:"key"`
	Signature   string    `json:"signature"`
	CA          bool      `json:"ca"`
	Names       []string  `json:"names"`
	ID          string    `json:"id,omitempty"`
	IDFault     string    `json:"id_fault,omitempty"`
	Fingerprint string    `json:"fingerprint"`
}

func (a *app) certInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE | HOST:PORT", Short: "what is in a certificate file, or what a server presents",
		Long: `It shows what is there and verifies nothing: not who signed it, not whether it
is revoked. It checks the shape of a SPIFFE identity and whether the time is
right, and exits 1 if the first certificate is not good now.`,
		Example: "  parley cert inspect leaf.pem\n  parley cert inspect - < leaf.pem\n  parley cert inspect 127.0.0.1:8443",
		Args:    arguments(1, 1, "a FILE or HOST:PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), a.flags.timeout)
			defer cancel()
			certs, err := a.certificates(ctx, args[0])
			if err != nil {
				return err
			}
			list := describeAll(certs)
			if a.term.JSON() {
				err = a.term.Document("certificates", map[string]any{"items": list})
			} else {
				a.writeInspection(list)
			}
			if now := a.clock.Now(); err == nil && (now.After(list[0].NotAfter) || now.Before(list[0].NotBefore)) {
				return errNo
			}
			return err
		},
	}
}

// certificates are those of a file, of standard input or of a server. A name of an
// existing file is that file.
func (a *app) certificates(ctx context.Context, place string) ([]*x509.Certificate, error) {
	if place == "-" {
		return readPEM(a.in)
	}
	f, err := os.Open(place)
	if err == nil {
		defer f.Close()
		return readPEM(f)
	}
	if _, _, splitErr := net.SplitHostPort(place); splitErr == nil && errors.Is(err, os.ErrNotExist) {
		return presented(ctx, place)
	}
	var p *os.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return nil, fault.Wrap(err, fault.Usage, "give a PEM file, or HOST:PORT", "cannot read %s", place)
}

// presented is what a server shows to a stranger. The handshake is an ordinary
// verified one: where verification fails, and it does for every certificate of a
// mesh's own CA, the error has the certificates and no byte was sent after them.
func presented(ctx context.Context, address string) ([]*x509.Certificate, error) {
	conn, err := new(tls.Dialer).DialContext(ctx, "tcp", address)
	var unverified *tls.CertificateVerificationError
	if errors.As(err, &unverified) && len(unverified.UnverifiedCertificates) > 0 {
		return unverified.UnverifiedCertificates, nil
	}
	if err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) { // without the names of the calls
			err = errno
		}
		return nil, fault.Wrap(err, fault.Unreachable, "is a TLS server there? on that machine: ss -ltnp", "no certificate from %s", address)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates, nil
}

func readPEM(r io.Reader) ([]*x509.Certificate, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxPEM+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxPEM {
		return nil, fault.New(fault.Usage, "is it the right file?", "more than 1 MiB is no certificate file")
	}
	return parsePEM(data)
}

// parsePEM is every certificate in data, in order; other blocks, such as keys, are
// passed over.
func parsePEM(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for b, rest := pem.Decode(data); b != nil && len(certs) < maxCertificates; b, rest = pem.Decode(rest) {
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fault.Wrap(err, fault.Usage, "is it the right file?", "certificate %d cannot be read", len(certs)+1)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fault.New(fault.Usage, "a certificate begins with -----BEGIN CERTIFICATE-----", "there is no PEM certificate in it")
	}
	return certs, nil
}

func describeAll(certs []*x509.Certificate) []certificate {
	list := make([]certificate, len(certs))
	for i, c := range certs {
		list[i] = describe(c)
	}
	return list
}

func describe(c *x509.Certificate) certificate {
	d := certificate{
		Subject: c.Subject.String(), Issuer: c.Issuer.String(), Serial: identity.Serial(c),
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), Key: keyKind(c), Signature: c.SignatureAlgorithm.String(),
		CA: c.IsCA, Names: append([]string{}, c.DNSNames...), Fingerprint: identity.Fingerprint(c),
	}
	for _, ip := range c.IPAddresses {
		d.Names = append(d.Names, ip.String())
	}
	for _, u := range c.URIs {
		d.Names = append(d.Names, u.String())
	}
	if len(c.URIs) == 0 || c.IsCA {
		return d
	}
	if id, err := identity.LeafID(c); err != nil {
		d.IDFault = err.Error()
	} else {
		d.ID = id.String()
	}
	return d
}

func keyKind(c *x509.Certificate) string {
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return c.PublicKeyAlgorithm.String()
}

func (a *app) writeInspection(list []certificate) {
	now, t := a.clock.Now(), a.term
	line := func(name, value string) {
		if value != "" {
			t.Printf("    %-12s %s\n", name, value)
		}
	}
	for i, c := range list {
		mark, state := term.OK, "ends "+term.Relative(c.NotAfter, now)
		switch {
		case now.After(c.NotAfter):
			mark, state = term.No, "ENDED "+term.Relative(c.NotAfter, now)
		case now.Before(c.NotBefore):
			mark, state = term.No, "NOT YET: begins "+term.Relative(c.NotBefore, now)
		case c.IDFault != "":
			mark = term.Look
		}
		t.Printf("%s  certificate %d of %d, %s\n", t.Mark(mark), i+1, len(list), state)
		line("identity", c.ID)
		line("no identity", c.IDFault)
		line("subject", c.Subject)
		line("issuer", c.Issuer)
		for _, n := range c.Names {
			line("name", n)
		}
		line("serial", c.Serial)
		line("valid", term.Stamp(c.NotBefore)+" to "+term.Stamp(c.NotAfter))
		line("key", c.Key+", signed with "+c.Signature)
		line("sha256", c.Fingerprint)
	}
	t.Hintf("\nNothing was verified here: this is what is there, not who vouches for it.\n")
}
