package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/fault"
)

// Limits of a Client.
const (
	// DefaultTimeout bounds one call of a Client.
	DefaultTimeout = 30 * time.Second
	// VerifyTimeout bounds Verify, which reads every log from its start.
	VerifyTimeout = 15 * time.Minute
	// maxReply bounds a reply, and a line of a tail, in bytes.
	maxReply = 128 << 20
	// maxSocket is the longest path of a Unix socket on Linux (unix(7)).
	maxSocket = 107
)

// A Client calls the admin API over its Unix socket. It is safe for concurrent
// use. Every error that a person can act on is a *fault.Fault or a fault.List.
type Client struct {
	// Timeout bounds one call; zero or less means DefaultTimeout. It is not to
	// be changed once the client is in use.
	Timeout time.Duration

	socket   string
	remote   bool // socket is the name of a server on another machine
	http     *http.Client
	requests *Requests
}

// New is a client of the server at address: the path of its socket, or the same
// as a URL, unix:///run/parley/parley.sock. It does not connect.
func New(address string) (*Client, error) {
	path := address
	if rest, ok := strings.CutPrefix(address, "unix:"); ok {
		path = strings.TrimPrefix(rest, "//")
	}
	switch {
	case path == "" || strings.Contains(path, "://") || strings.HasPrefix(path, "@"):
		return nil, fault.New(fault.Usage, "give the path of the server's socket, such as /run/parley/parley.sock",
			"%q is no address of an admin API", address)
	case len(path) > maxSocket:
		return nil, fault.New(fault.SocketPath, "use a shorter directory",
			"the socket path %s is longer than %d bytes", path, maxSocket)
	}
	return over(path, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	})
}

// NewOver is a client of the server called name, on another machine: what dial
// opens has proven who is at its other end. It does not connect.
func NewOver(name string, dial func(context.Context) (net.Conn, error)) (*Client, error) {
	c, err := over(name, dial)
	if err == nil {
		c.remote = true
	}
	return c, err
}

func over(name string, dial func(context.Context) (net.Conn, error)) (*Client, error) {
	transport := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableCompression: true,
		MaxIdleConns:       2,
		IdleConnTimeout:    time.Minute,
	}
	c := &Client{socket: name, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	requests, err := NewClient("http://parley", func(r *Requests) error { r.Client = c; return nil })
	c.requests = requests
	return c, err
}

// Close closes the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Socket is the path that the client dials.
func (c *Client) Socket() string { return c.socket }

// Do sends one request and turns every reply but a success into the faults that
// it carries. It is what the generated half of the client calls.
func (c *Client) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(req.Context(), err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, c.problem(resp)
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Type() == fs.ModeSocket
}

// unreachable says why there was no reply.
func (c *Client) unreachable(ctx context.Context, err error) error {
	path := c.socket
	if c.remote && !errors.Is(ctx.Err(), context.Canceled) {
		return fault.Wrap(err, fault.Unreachable, "is parley server running there, and is the credential still good? parley cert inspect FILE", "the server %s does not answer", path)
	}
	if abs, absErr := filepath.Abs(path); absErr == nil {
		path = abs
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return context.Canceled
	case errors.Is(err, os.ErrNotExist):
		return fault.New(fault.Unreachable, "start one: parley dev", "no server: there is no socket %s", path)
	case errors.Is(err, syscall.ECONNREFUSED) && !isSocket(path):
		return fault.New(fault.Unreachable, "name the server's socket: --api PATH", "no server: %s is no socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fault.New(fault.Unreachable, "start it again: "+startAgain(path), "no server: nothing listens on %s any more", path)
	case errors.Is(err, os.ErrPermission):
		return fault.New(fault.NotPermitted, "run this as root or as the server's own user", "this user may not open %s", path)
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Unreachable, "look at the server's log, or give it longer with --timeout",
			"the server at %s did not answer in time", path)
	}
	return fault.Wrap(err, fault.Unreachable, "start one: parley dev", "the server at %s does not answer", path)
}

// startAgain is the command that starts a server whose socket is left over at path.
// Only `parley dev` keeps the command beside it.
func startAgain(path string) string {
	dir := filepath.Dir(path)
	if _, err := os.Stat(filepath.Join(dir, "bin", "parley")); err != nil {
		return "parley server, with the flags that it had"
	}
	if here, err := filepath.Abs(".parley"); err == nil && here == dir {
		return "parley dev, with the --file that it had"
	}
	return "parley dev --dir " + dir + ", with the --file that it had"
}

// problem is the faults of an error reply.
func (c *Client) problem(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return c.unreachable(resp.Request.Context(), err)
	}
	var p Problem
	if !isMedia(resp, "application/problem+json") || json.Unmarshal(body, &p) != nil || p.Code == "" {
		return fault.New(fault.Unreachable, "is it the socket of a parley server?",
			"what listens on %s answers %s and no problem document", c.socket, resp.Status)
	}
	return p.Err()
}

// Err is the problem as faults: one, or a fault.List of several.
func (p *Problem) Err() error {
	l := make(fault.List, 0, len(p.Faults))
	for i := range p.Faults {
		l = append(l, p.Faults[i].Fault())
	}
	switch len(l) {
	case 0:
		return fault.New(fault.Code(p.Code), "", "%s", p.Title)
	case 1:
		return l[0]
	}
	return l
}

// Fault is f as the program's own word.
func (f *Fault) Fault() *fault.Fault {
	return &fault.Fault{
		Code: fault.Code(f.Code), Message: f.Message, File: f.File, Line: f.Line, Column: f.Column,
		EndColumn: f.EndColumn, Label: f.Label, Hint: f.Help, Replacement: f.Replacement,
	}
}

// NewFault is f on the wire. The cause is part of its message.
func NewFault(f *fault.Fault) Fault {
	message := f.Message
	if f.Err != nil {
		message = fmt.Sprintf("%s: %v", f.Message, f.Err)
	}
	return Fault{
		Code: string(f.Code), Message: message, File: f.File, Line: f.Line, Column: f.Column,
		EndColumn: f.EndColumn, Label: f.Label, Help: f.Hint, Replacement: f.Replacement,
	}
}

func isMedia(resp *http.Response, want string) bool {
	media, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(media), want)
}

// reply reads a whole reply within its limit.
func (c *Client) reply(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return nil, c.unreachable(resp.Request.Context(), err)
	}
	if len(body) > maxReply {
		return nil, fmt.Errorf("the reply is larger than %d bytes", maxReply)
	}
	return body, nil
}

// decode makes one call and reads its reply as a T. A field that this client
// does not know is from a newer server and is passed over.
func decode[T any](c *Client, ctx context.Context, send func(context.Context) (*http.Response, error)) (*T, error) {
	body, err := c.call(ctx, c.timeout(), send)
	if err != nil {
		return nil, err
	}
	return parse[T](body)
}

func parse[T any](body []byte) (*T, error) {
	v := new(T)
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(v); err != nil {
		return nil, fmt.Errorf("read the server's reply: %w", err)
	}
	return v, nil
}

func (c *Client) call(ctx context.Context, limit time.Duration, send func(context.Context) (*http.Response, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	resp, err := send(ctx)
	if err != nil {
		return nil, err
	}
	return c.reply(resp)
}

func (c *Client) timeout() time.Duration {
	if c.Timeout <= 0 {
		return DefaultTimeout
	}
	return c.Timeout
}
