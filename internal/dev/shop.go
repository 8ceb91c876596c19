package dev

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/parleymesh/parley"
)

// The applications of the shop are ordinary: they speak plaintext to addresses
// on this machine and know nothing of certificates.

func (a *app) webOrder(w http.ResponseWriter, r *http.Request) {
	a.relay(w, r, http.MethodGet, a.Orders, "/orders/"+r.PathValue("id"), nil)
}

func (a *app) webBuy(w http.ResponseWriter, r *http.Request) {
	a.relay(w, r, http.MethodPost, a.Orders, "/orders", []byte(`{"item":"book"}`))
}

func (a *app) order(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"order": r.PathValue("id"), "item": "book", "from": "orders"})
}

func (a *app) placeOrder(w http.ResponseWriter, r *http.Request) {
	a.relay(w, r, http.MethodPost, a.Payments, "/charge", []byte(`{"amount":12}`))
}

// charge writes a line into the ledger and tells its number.
func (a *app) charge(w http.ResponseWriter, r *http.Request) {
	reply, err := exchange(r.Context(), a.Ledger, "APPEND charge 12\n")
	if err != nil || !strings.HasPrefix(reply, "OK ") {
		writeJSON(w, http.StatusBadGateway, map[string]string{"error": "the ledger did not answer", "from": "payments"})
		return
	}
	writeJSON(w, http.StatusCreated, map[string]string{"charged": "12", "ledger": strings.TrimSpace(reply[3:]), "from": "payments"})
}

// callerField is how web shows who called it.
const callerField = "Shop-Caller"

// relay calls the next service and hands its answer back. It passes on the ids
// that let one call be followed through all hops, as every service should, and says
// whom the gateway let in, where it was the gateway that called.
func (a *app) relay(w http.ResponseWriter, in *http.Request, method, addr, path string, body []byte) {
	out, err := http.NewRequestWithContext(in.Context(), method, "http://"+addr+path, bytes.NewReader(body))
	if err != nil {
		writeJSON(w, http.StatusInternalServerError, map[string]string{"error": "bad address", "from": a.Name})
		return
	}
	for _, h := range []string{"X-Request-Id", "Traceparent"} {
		if v := in.Header.Get(h); v != "" {
			out.Header.Set(h, v)
		}
	}
	origin, err := parley.ReadOrigin(in.Header)
	if err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "the caller's identity cannot be read", "from": a.Name})
		return
	}
	if origin != nil {
		w.Header().Set(callerField, origin.Name)
	}
	resp, err := a.client.Do(out)
	if err != nil {
		writeJSON(w, http.StatusBadGateway, map[string]string{"error": "the next service did not answer", "from": a.Name})
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, io.LimitReader(resp.Body, maxAnswer)) // the client sees a short body
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client went away
}

// serveLedger speaks "APPEND text" and "COUNT", one line each.
func (a *app) serveLedger(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				fmt.Fprintln(c, a.ledgerLine(lines.Text()))
			}
		}()
	}
}

func (a *app) ledgerLine(line string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch verb, rest, _ := strings.Cut(line, " "); verb {
	case "APPEND":
		a.entries = append(a.entries, rest)
		return fmt.Sprintf("OK %d", len(a.entries))
	case "COUNT":
		return fmt.Sprintf("OK %d", len(a.entries))
	}
	return "ERR unknown"
}

// exchange sends one line and reads one.
func exchange(ctx context.Context, addr, line string) (string, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if _, err := io.WriteString(c, line); err != nil {
		return "", err
	}
	return bufio.NewReader(io.LimitReader(c, maxAnswer)).ReadString('\n')
}
