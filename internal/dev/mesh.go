package dev

import (
	"fmt"
	"os"
	"path/filepath"
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

// apps are the demo's applications with what each is told. ports are the
// outbound ports that the mesh gave.
func apps(base int, socket string, ports map[[2]string]int) []AppConfig {
	local := func(p int) string { return fmt.Sprintf("127.0.0.1:%d", p) }
	to := func(from, to string) string { return local(ports[[2]string{from, to}]) }
	return []AppConfig{
		{Name: "ledger", Listen: local(base + offLedger), Socket: socket},
		{Name: "payments", Listen: local(base + offPayments), Socket: socket, Ledger: to("payments", "ledger")},
		{Name: "orders", Listen: local(base + offOrders), Socket: socket, Payments: to("orders", "payments")},
		{Name: "web", Listen: local(base + offWeb), Socket: socket, Orders: to("web", "orders"), Payments: to("web", "payments"), Ledger: to("web", "ledger")},
		// The stranger runs from an executable that no service names.
		{Name: "stranger", Socket: socket, Orders: to("web", "orders")},
	}
}

// binDir is where a data directory keeps the executables of the demo.
func binDir(dir string) string { return filepath.Join(dir, "bin") }
