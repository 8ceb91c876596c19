package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
)

// A credential is an administrator's: key, chain and the roots that its server is
// verified by, all in one PEM file.
type credential struct {
	own   *identity.Credential
	trust *identity.Trust
}

// Credential implements identity.Source.
func (c *credential) Credential() (*identity.Credential, error) { return c.own, nil }

// Trust implements identity.Source.
func (c *credential) Trust() *identity.Trust { return c.trust }

// maxCredential bounds a credential file, in bytes.
const maxCredential = 256 << 10

// readCredential reads what cert issue wrote.
func readCredential(name string) (*credential, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fault.Wrap(pathCause(err), fault.KeyUnreadable, "parley cert issue admin/NAME --out "+name, "the credential file %s cannot be read", name)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.KeyMode, "chmod 600 "+name, "the credential file %s has mode %04o: others may use it", name, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCredential))
	if err != nil {
		return nil, fault.Wrap(pathCause(err), fault.KeyUnreadable, "ls -l "+name, "the credential file %s cannot be read", name)
	}
	c, err := parseCredential(data)
	if err != nil {
		return nil, fault.Wrap(err, fault.KeyCorrupt, "make another: parley cert issue admin/NAME --out FILE", "the credential file %s cannot be used", name)
	}
	return c, nil
}

func parseCredential(data []byte) (*credential, error) {
	var key crypto.Signer
	var chain, roots []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			signer, ok := k.(crypto.Signer)
			if err != nil || !ok || key != nil {
				return nil, errors.New("its private key cannot be read, or there are two")
			}
			key = signer
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, errors.New("a certificate in it cannot be read")
			}
			if cert.CheckSignatureFrom(cert) == nil {
				roots = append(roots, cert)
			} else {
				chain = append(chain, cert)
			}
		}
	}
	own, err := identity.NewCredential(chain, key)
	if err != nil {
		return nil, err
	}
	if _, ok := own.ID.AdminName(); !ok || len(roots) == 0 {
		return nil, errors.New("it is no administrator's, or names no root")
	}
	td := own.ID.TrustDomain()
	server, err := identity.ServerID(td)
	if err != nil {
		return nil, err
	}
	return &credential{own: own, trust: &identity.Trust{
		Bundles: map[identity.TrustDomain]*identity.Bundle{td: {TrustDomain: td, Roots: roots}},
		Members: map[identity.ID]bool{server: true},
	}}, nil
}

// remote is a client of the server at addr, host:port, on another machine.
func (a *app) remote(addr string) (*api.Client, error) {
	file := a.flags.credential
	if file == "" {
		file = a.getenv("PARLEY_CREDENTIAL")
	}
	if file == "" {
		return nil, usage("--credential FILE, or PARLEY_CREDENTIAL; make one where the server runs: parley cert issue admin/NAME --out FILE",
			"a server on another machine wants a credential")
	}
	if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
		return nil, usage("for example --api https://10.0.0.1:7443", "%q is no address of an admin API", addr)
	}
	c, err := readCredential(file)
	if err != nil {
		return nil, err
	}
	server, err := identity.ServerID(c.own.ID.TrustDomain())
	if err != nil {
		return nil, err
	}
	d := mtls.NewDialer(c, server, a.clock, mtls.HTTP1)
	return api.NewOver(addr, func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) })
}

func (a *app) certIssueCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "issue admin/NAME", Short: "a certificate for an administrator of the mesh file",
		Long: `The key is made here and never leaves the file, which is its owner's to read.
Services and hosts get their certificates by themselves.`,
		Example: `  parley cert issue admin/alice --out alice.pem
  parley --api https://10.0.0.1:7443 --credential alice.pem status`,
		Args: arguments(1, 1, "admin/NAME"),
	}
	cmd.Flags().StringVar(&out, "out", "", "`file` to write, which must not exist")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if out == "" {
			return usage("parley cert issue admin/NAME --out NAME.pem", "--out names the file to write")
		}
		return nil
	}
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		key, csr, err := newRequest()
		if err != nil {
			return err
		}
		f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fault.Wrap(pathCause(err), fault.KeyUnwritable, "choose another file: --out FILE", "the file %s cannot be made", out)
		}
		defer f.Close()
		r, err := c.IssueCertificate(cmd.Context(), api.CertificateRequest{Identity: args[0], Csr: csr})
		if err != nil {
			return errors.Join(err, os.Remove(out))
		}
		text := strings.Join([]string{string(key), r.Chain, r.Roots}, "")
		if _, err = io.WriteString(f, text); err == nil {
			err = f.Sync()
		}
		if err != nil {
			return fault.Wrap(errors.Join(pathCause(err), os.Remove(out)), fault.KeyUnwritable, "df -h .", "the file %s cannot be written", out)
		}
		if a.term.JSON() {
			return a.term.Document("new_certificate", r)
		}
		made, err := parseCredential([]byte(text))
		if err != nil {
			return err
		}
		a.term.Printf("%s   ends %s   in %s\n", r.ID, term.Relative(made.own.NotAfter(), a.clock.Now()), out)
		a.term.Hintf("Use it:  parley --api https://SERVER:7443 --credential %s status\n", out)
		return nil
	})
	return cmd
}

// newRequest is a new key, PEM, and a certificate request for it, DER.
func newRequest() (keyPEM, csr []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), csr, err
}
