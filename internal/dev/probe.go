package dev

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/parleymesh/parley"
	"github.com/parleymesh/parley/internal/identity"
)

// do makes one call and reports what the client itself saw.
func (a *app) do(ctx context.Context, q ask) answer {
	var r answer
	var err error
	switch q.Op {
	case "http":
		r, err = a.plainHTTP(ctx, q)
	case "tcp":
		r.Body, err = exchange(ctx, q.Addr, q.Send)
	case "svid", "mtls":
		r, err = a.withSVID(ctx, q)
	case "tls":
		r, err = tlsCall(ctx, q.Addr, nil)
	case "foreign":
		var cert tls.Certificate
		if cert, err = lookAlike(q.Service); err == nil {
			r, err = tlsCall(ctx, q.Addr, &cert)
		}
	default:
		err = fmt.Errorf("unknown call %q", q.Op)
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

func (a *app) plainHTTP(ctx context.Context, q ask) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, q.Method, "http://"+q.Addr+q.Path, nil)
	if err != nil {
		return answer{}, err
	}
	for k, v := range q.Header {
		req.Header.Set(k, v)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	return readResponse(resp)
}

func readResponse(resp *http.Response) (answer, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	r := answer{Status: resp.StatusCode, Body: string(body), Header: map[string]string{}}
	for k := range resp.Header {
		r.Header[k] = resp.Header.Get(k)
	}
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		r.seePeer(resp.TLS.PeerCertificates[0])
	}
	return r, err
}

func (r *answer) seePeer(leaf *x509.Certificate) {
	r.PeerSerial = identity.Serial(leaf)
	if len(leaf.URIs) == 1 {
		r.PeerID = leaf.URIs[0].String()
	}
}

// withSVID fetches the process's own SVID from the Workload API and, for mtls,
// calls a service's inbound listener with it, without a sidecar of its own.
func (a *app) withSVID(ctx context.Context, q ask) (answer, error) {
	w := &parley.Workload{Socket: "unix://" + a.Socket}
	if err := w.Start(ctx); err != nil {
		return answer{}, err
	}
	defer w.Close()
	own := answer{OwnID: w.ID()}
	if q.Op == "svid" {
		return own, nil
	}
	req, err := http.NewRequestWithContext(ctx, q.Method, "https://"+q.Addr+q.Path, nil)
	if err != nil {
		return own, err
	}
	for k, v := range q.Header {
		req.Header.Set(k, v)
	}
	resp, err := w.HTTPClient(q.Service).Do(req)
	if err != nil {
		return own, err
	}
	r, err := readResponse(resp)
	r.OwnID = own.OwnID
	return r, err
}

// tlsCall completes what handshake it can, sends a request, and reads: in TLS
// 1.3 a client learns only then that its certificate was refused.
func tlsCall(ctx context.Context, addr string, cert *tls.Certificate) (answer, error) {
	// This client trusts anybody on purpose: it is the attacker.
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return answer{}, err
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return answer{}, err
	}
	var r answer
	r.seePeer(c.ConnectionState().PeerCertificates[0])
	if _, err := io.WriteString(c, "GET /orders/1 HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n"); err != nil {
		return r, err
	}
	buf := make([]byte, maxAnswer)
	n, err := c.Read(buf)
	r.Body = string(buf[:n])
	if n > 0 || errors.Is(err, io.EOF) {
		err = nil
	}
	return r, err
}

// outside calls the gateway as somebody who has the CA's certificate and perhaps
// a credential.
func (m *Mesh) outside(ctx context.Context, method, path string, c credential, requestID string) answer {
	ctx, done := context.WithTimeout(ctx, 2*callTimeout)
	defer done()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(m.roots)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, method, m.GatewayURL()+path, nil)
	if err != nil {
		return answer{Error: err.Error()}
	}
	req.Header.Set("X-Request-Id", requestID)
	if c.key != "" {
		req.Header.Set("X-API-Key", c.key)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{Error: err.Error()}
	}
	a, err := readResponse(resp)
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

// lookAlike is a certificate for id from a CA made up on the spot, which calls
// itself by the mesh's own names.
func lookAlike(id string) (tls.Certificate, error) {
	uri, err := url.Parse(id)
	if err != nil {
		return tls.Certificate{}, err
	}
	caKey, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		return tls.Certificate{}, err
	}
	// The window is wide so that no clock has to be asked.
	notBefore := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter := time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: notBefore, NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: uri.Host}},
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: notBefore, NotAfter: notAfter, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{uri},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, caKey.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	parent, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, parent, key.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, rootDER}, PrivateKey: key}, nil
}

// oneLine makes outside text fit a table.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 60 {
		s = s[:57] + "..."
	}
	return s
}
