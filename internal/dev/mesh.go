package dev

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Where things stand, as offsets from the port base.
const (
	offGateway  = 3
	offIssuer   = 4
	offMetrics  = 5
	offWeb      = 10 // the applications' own ports
	offOrders   = 11
	offPayments = 12
	offLedger   = 13
	offInbound  = 20 // their sidecars, in the same order
	offOutbound = 30 // the first port that `calls` are given
	portsNeeded = 40
)

// demoServices are the services of the shop, each an executable of that name.
var demoServices = []string{"web", "orders", "payments", "ledger"}

// DefaultPortBase puts the demo's gateway on port 8443.
const DefaultPortBase = 8440

// demoMesh is the mesh file of the shop, with everything of it in dir. It is
// written as a person would write it: `parley dev` shows it, and many start
// their own from it.
func demoMesh(dir string, base int) string {
	port := func(off int) string { return fmt.Sprint(base + off) }
	exe := func(name string) string { return quote(filepath.Join(binDir(dir), name)) }
	return strings.NewReplacer(
		"BIN/web", exe("web"), "BIN/orders", exe("orders"), "BIN/payments", exe("payments"), "BIN/ledger", exe("ledger"), "UID", fmt.Sprint(os.Geteuid()), "GATEWAY", port(offGateway), "ISSUER", port(offIssuer), "DIR/issuer.pem", quote(filepath.Join(dir, issuerCert)), "OUTBOUND", port(offOutbound),
		"APP_WEB", port(offWeb), "APP_ORDERS", port(offOrders), "APP_PAYMENTS", port(offPayments), "APP_LEDGER", port(offLedger),
		"IN_WEB", port(offInbound), "IN_ORDERS", port(offInbound+1), "IN_PAYMENTS", port(offInbound+2), "IN_LEDGER", port(offInbound+3),
	).Replace(demoText)
}

const demoText = `# The demo mesh: a shop. Each service is attested by its user and the executable that it runs.
trust_domain: shop.dev
leaf_ttl: 12s                 # renewed at half of it; 1h where you do not say
outbound_ports: OUTBOUND

services:
  web:
    runs_as: {user: UID, exe: BIN/web}
    inbound: {listen: "127.0.0.1:IN_WEB", app: "127.0.0.1:APP_WEB"}
    calls: [orders, payments, ledger]   # a way there; whether it may is the callee's to say
  orders:
    runs_as: {user: UID, exe: BIN/orders}
    inbound: {listen: "127.0.0.1:IN_ORDERS", app: "127.0.0.1:APP_ORDERS"}
    calls: [payments]
    allow:
      - {from: [web], methods: [GET, POST], paths: [/orders/**]}
  payments:
    runs_as: {user: UID, exe: BIN/payments}
    inbound: {listen: "127.0.0.1:IN_PAYMENTS", app: "127.0.0.1:APP_PAYMENTS"}
    calls: [ledger]
    allow:
      - {from: [orders], methods: [POST], paths: [/charge]}
  ledger:
    runs_as: {user: UID, exe: BIN/ledger}
    inbound: {listen: "127.0.0.1:IN_LEDGER", app: "127.0.0.1:APP_LEDGER", protocol: tcp}
    allow:
      - {from: [payments]}

gateway:
  edge:
    listen: "127.0.0.1:GATEWAY"
    tls: {mesh_ca: {hosts: [localhost, 127.0.0.1]}}
    routes:
      - match: {path: /shop/orders/**, methods: [GET]}
        to: web
        require:
          any:
            - api_key: {scopes: [shop.read]}
            - jwt: {issuer: dev, audience: shop, scopes: [shop.read]}
      - match: {path: /shop/buy, methods: [POST]}
        to: web
        require: {any: [{api_key: {scopes: [shop.buy]}}]}

issuers:
  dev:                          # for development only: parley dev token makes tokens of it
    issuer: https://localhost:ISSUER
    private_hosts: [localhost]
    ca: DIR/issuer.pem
`

// plain are the characters of a path that mean nothing to YAML or a shell.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"

// quote is a path as a YAML scalar, quoted where it must be.
func quote(path string) string {
	if strings.Trim(path, plain) == "" {
		return path
	}
	return strconv.Quote(path)
}

// shop are the demo's applications, of those services that the mesh file has, with
// what each is told.
func (m *Mesh) shop() []AppConfig {
	all := []AppConfig{
		{Name: "ledger"},
		{Name: "payments", Ledger: m.outbound("payments", "ledger")},
		{Name: "orders", Payments: m.outbound("orders", "payments")},
		{Name: "web", Orders: m.outbound("web", "orders"), Payments: m.outbound("web", "payments"), Ledger: m.outbound("web", "ledger")},
	}
	all = slices.DeleteFunc(all, func(a AppConfig) bool { return m.file.Services[a.Name] == nil })
	for i := range all {
		all[i].Socket, all[i].Listen = m.Socket, m.appAddress(all[i].Name)
	}
	// The stranger runs from an executable that no service names.
	return append(all, AppConfig{Name: "stranger", Socket: m.Socket, Orders: m.outbound("web", "orders")})
}

// appAddress is where a service's application listens, host:port; empty where it
// has none, or one on a Unix socket, which the shop's do not serve.
func (m *Mesh) appAddress(service string) string {
	if s := m.file.Services[service]; s != nil && s.Inbound != nil && !strings.HasPrefix(s.Inbound.App, "unix:") {
		return s.Inbound.App
	}
	return ""
}

// inbound is the address of a service's inbound listener.
func (m *Mesh) inbound(service string) string { return m.file.Services[service].Inbound.Listen }

// outbound is where one service reaches another.
func (m *Mesh) outbound(from, to string) string {
	if s := m.file.Services[from]; s != nil {
		for _, c := range s.Calls {
			if c.To == to && c.Listen != "" {
				return c.Listen
			}
		}
	}
	return fmt.Sprintf("127.0.0.1:%d", m.ports[[2]string{from, to}])
}

// binDir is where a data directory keeps the executables of the demo.
func binDir(dir string) string { return filepath.Join(dir, "bin") }
