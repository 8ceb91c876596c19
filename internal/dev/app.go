package dev

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// AppConfig tells an application of the shop where it listens and where its
// sidecar's listeners are: all that a service has to know.
type AppConfig struct {
	// Name is web, orders, payments, ledger or stranger.
	Name string `json:"name"`
	// Listen is its own address, empty for one that serves nothing.
	Listen string `json:"listen,omitempty"`
	// Orders, Payments and Ledger are the addresses of its sidecar's outbound
	// listeners, host:port, for the services that it calls.
	Orders   string `json:"orders,omitempty"`
	Payments string `json:"payments,omitempty"`
	Ledger   string `json:"ledger,omitempty"`
	// Socket is the path of the SPIFFE Workload API.
	Socket string `json:"socket"`
}

// An ask is a call that the mesh's starter wants an application to make, one
// JSON object a line on the application's standard input.
type ask struct {
	ID      int               `json:"id"`
	Op      string            `json:"op"`
	Method  string            `json:"method,omitempty"`
	Path    string            `json:"path,omitempty"`
	Addr    string            `json:"addr,omitempty"`
	Service string            `json:"service,omitempty"`
	Send    string            `json:"send,omitempty"`
	Header  map[string]string `json:"header,omitempty"`
}

// An answer is what the application saw, one JSON object a line on its standard output.
type answer struct {
	ID     int               `json:"id"`
	Status int               `json:"status,omitempty"`
	Header map[string]string `json:"header,omitempty"`
	// Body is what the client read, up to 4 KiB.
	Body string `json:"body,omitempty"`
	// PeerID and PeerSerial are of the certificate that the client saw, OwnID and
	// OwnSerial of the one that it presented.
	PeerID     string `json:"peer_id,omitempty"`
	PeerSerial string `json:"peer_serial,omitempty"`
	OwnID      string `json:"own_id,omitempty"`
	OwnSerial  string `json:"own_serial,omitempty"`
	Error      string `json:"error,omitempty"`
}

// maxAnswer is how much of a body an application reports.
const maxAnswer = 4096

// RunApp runs one application of the shop until its standard input ends or it is
// interrupted. Its first line of output says that it is ready.
func RunApp(ctx context.Context, cfg AppConfig, in io.Reader, out io.Writer, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	app := &app{AppConfig: cfg, client: &http.Client{Timeout: callTimeout, Transport: &http.Transport{}}, out: out, log: log}
	if cfg.Listen != "" {
		l, err := net.Listen("tcp", cfg.Listen)
		if err != nil {
			return err
		}
		defer l.Close()
		go app.serve(ctx, l)
	}
	app.reply(answer{})
	go func() {
		<-ctx.Done()
		if c, ok := in.(io.Closer); ok {
			c.Close()
		}
	}()
	return app.listen(ctx, in)
}

// callTimeout bounds each call that an application makes.
const callTimeout = 5 * time.Second

type app struct {
	AppConfig
	client *http.Client
	log    *slog.Logger
	mu     sync.Mutex // guards out and entries
	out    io.Writer
	// entries are the ledger's lines.
	entries []string
}

// listen answers asks until the input ends. Nobody waits for the answers to
// calls that are under way then: they are given up.
func (a *app) listen(ctx context.Context, in io.Reader) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var q ask
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return fmt.Errorf("read what to do: %w", err)
		}
		wg.Go(func() {
			ctx, done := context.WithTimeout(ctx, callTimeout)
			defer done()
			r := a.do(ctx, q)
			r.ID = q.ID
			a.reply(r)
		})
	}
	if err := lines.Err(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func (a *app) reply(r answer) {
	line, err := json.Marshal(r)
	if err != nil {
		line = []byte(`{"error":"the answer cannot be encoded"}`)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out.Write(append(line, '\n'))
}

// serve runs the application itself: three speak HTTP, the ledger lines of text.
func (a *app) serve(ctx context.Context, l net.Listener) {
	if a.Name == "ledger" {
		a.serveLedger(ctx, l)
		return
	}
	mux := http.NewServeMux()
	switch a.Name {
	case "web":
		mux.HandleFunc("GET /shop/orders/{id}", a.webOrder)
		mux.HandleFunc("POST /shop/buy", a.webBuy)
	case "orders":
		mux.HandleFunc("GET /orders/{id}", a.order)
		mux.HandleFunc("POST /orders", a.placeOrder)
	case "payments":
		mux.HandleFunc("POST /charge", a.charge)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: callTimeout}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	_ = srv.Serve(l) // ends with ctx
}
