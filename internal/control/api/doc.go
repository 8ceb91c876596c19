// Package api is the admin API's wire: the OpenAPI document, the types and the
// server's and client's halves that are generated from it, and a client for
// people's programs that dials the Unix socket.
//
// It refuses to know what an operation does; control does.
package api

//go:generate go tool -modfile=../../../tools/go.mod oapi-codegen -config types.cfg.yaml openapi.yaml
//go:generate go tool -modfile=../../../tools/go.mod oapi-codegen -config server.cfg.yaml openapi.yaml
//go:generate go tool -modfile=../../../tools/go.mod oapi-codegen -config client.cfg.yaml openapi.yaml
