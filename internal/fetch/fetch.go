// Package fetch is the one client of the world outside of the mesh: it gets small
// documents over HTTPS from hosts that the mesh file names, and keeps the keys of
// token issuers with it. gate asks it for keys and never waits for long.
//
// It refuses every other host, redirects, proxies, private addresses unless the
// host is named for them, and answers that are long, slow or unverified. What it
// connects to is what it checked: the address is judged when the connection is
// made, so that a name that leads elsewhere a moment later gains nothing.
package fetch

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/mtls"
)

// Limits of one request.
const (
	// Timeout bounds it from the first look-up to the last byte.
	Timeout = 5 * time.Second
	// maxBody is the longest document, in bytes.
	maxBody   = jose.MaxKeySet
	maxHeader = 16 << 10
	maxCA     = 1 << 20
)

// Errors of a request.
var (
	ErrURL      = errors.New("not an https URL of a host, with nothing else in it than a port, a path and a query")
	ErrHost     = errors.New("the host is not one that the mesh file names for this issuer")
	ErrAddress  = errors.New("the host leads to a private or reserved address, and is not named under private_hosts")
	ErrRedirect = errors.New("the answer is a redirect, and none is followed")
	ErrStatus   = errors.New("the answer is not 200")
	ErrTooLong  = fmt.Errorf("the answer is longer than %d bytes", maxBody)
)

// A Reach is whom a client may ask.
type Reach struct {
	// Hosts are host names and IP addresses without port, in lower case.
	Hosts []string
	// Private are those among them that may lead to private addresses and to this
	// host. Link-local addresses are reached only where they themselves are named.
	Private []string
	// CAFile is a PEM file of the roots to trust instead of the host's.
	CAFile string
}

// A Client gets documents. It is safe for concurrent use.
type Client struct {
	reach   Reach
	http    *http.Client
	timeout time.Duration
}

// NewClient reads the CA file, if one is named.
func NewClient(r Reach, clk clock.Clock) (*Client, error) {
	var roots *x509.CertPool
	if r.CAFile != "" {
		pem, err := readFile(r.CAFile, maxCA)
		if err != nil {
			return nil, err
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", r.CAFile)
		}
	}
	c := &Client{reach: r, timeout: Timeout}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:            c.dial,
			TLSClientConfig:        mtls.Web(roots, clk),
			TLSHandshakeTimeout:    Timeout,
			ResponseHeaderTimeout:  Timeout,
			MaxResponseHeaderBytes: maxHeader,
			DisableKeepAlives:      true, // asked rarely, and each time checked anew
			DisableCompression:     true, // what is read is what was sent
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Get is the document at rawURL. The errors above are wrapped.
func (c *Client) Get(ctx context.Context, rawURL string) ([]byte, error) {
	u, err := c.check(rawURL)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", rawURL, ErrURL)
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	req.Header.Set("User-Agent", "parley")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode/100 == 3:
		return nil, fmt.Errorf("%s answers %d: %w", u.Redacted(), resp.StatusCode, ErrRedirect)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s answers %d: %w", u.Redacted(), resp.StatusCode, &statusError{resp.StatusCode})
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil {
		// A server can end its answer properly at the sight of our leaving.
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u.Redacted(), err)
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("%s: %w", u.Redacted(), ErrTooLong)
	}
	return body, nil
}

// A statusError is ErrStatus with the status.
type statusError struct{ status int }

func (e *statusError) Error() string        { return ErrStatus.Error() }
func (e *statusError) Is(target error) bool { return target == ErrStatus }

// check says whether rawURL may be asked for.
func (c *Client) check(rawURL string) (*url.URL, error) {
	u, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(c.reach.Hosts, u.Hostname()) {
		return nil, fmt.Errorf("%q: %w", u.Hostname(), ErrHost)
	}
	return u, nil
}

// ParseURL reads a URL that Get would ask for if its host were among those of
// Reach: https, a host in lower case, no user and no fragment. The error wraps
// ErrURL.
func ParseURL(rawURL string) (*url.URL, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "https" || u.Opaque != "" || u.User != nil || u.Fragment != "" || strings.Contains(rawURL, "#") ||
		u.Hostname() == "" || strings.ToLower(u.Host) != u.Host || strings.ContainsFunc(rawURL, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '\\' }) {
		return nil, fmt.Errorf("%.200q: %w", rawURL, ErrURL)
	}
	return u, nil
}

// dial connects to a host that check has admitted.
func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !c.mayReach(host, at.Addr()) {
			return fmt.Errorf("%q at %s: %w", host, address, ErrAddress)
		}
		return nil
	}}
	return d.DialContext(ctx, network, addr)
}

// mayReach judges the address that a host has led to.
func (c *Client) mayReach(host string, a netip.Addr) bool {
	if public(a) {
		return true
	}
	if !slices.Contains(c.reach.Private, host) {
		return false
	}
	if named, err := netip.ParseAddr(host); err == nil {
		return named.Unmap() == a.Unmap()
	}
	return near(a)
}

// readFile reads a regular file of at most limit bytes; anything else could keep
// it waiting.
func readFile(path string, limit int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return data, nil
}
