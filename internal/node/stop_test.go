package node_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/node"
)

// Clients that hold their connections are cut off in time, and the node's end is
// a clean one.
func TestSlowClientsDoNotSpoilTheEnd(t *testing.T) {
	t.Parallel()
	self := "/nobody/there"
	text := fmt.Sprintf("trust_domain: node.example\nservices: {a: {runs_as: {exe: %s}}}\n", self)
	dir, metrics := shortDir(t), freeAddr(t)
	cfg := config(t, dir, text)
	cfg.Metrics = metrics
	n, err := node.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ network, addr, send string }{
		{"unix", filepath.Join(dir, "api.sock"), "POST /v1/config HTTP/1.1\r\nHost: parley\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{\"na"},
		{"unix", filepath.Join(dir, "api.sock"), "GET /v1/audit/tail?follow=true HTTP/1.1\r\nHost: parley\r\n\r\n"},
		{"unix", filepath.Join(dir, "api.sock"), "GET /v1/st"},
		{"unix", filepath.Join(dir, "w.sock"), "PRI * HTTP/2.0\r\n"},
		{"tcp", metrics, "GET /metr"},
	} {
		conn, err := net.Dial(c.network, c.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(c.send)); err != nil {
			t.Fatal(err)
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + metrics + "/livez") // the others were accepted before
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	began := time.Now()
	ctx, done := context.WithTimeout(context.Background(), 20*time.Second)
	defer done()
	if err := n.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
	if d := time.Since(began); d > 9*time.Second {
		t.Errorf("stopping took %s", d)
	}
	for _, socket := range []string{"api.sock", "w.sock"} {
		if c, err := net.Dial("unix", filepath.Join(dir, socket)); err == nil {
			c.Close()
			t.Errorf("somebody answers on %s", socket)
		}
	}
}
