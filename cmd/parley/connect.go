package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

const socketName = "api.sock"

// connect is a client of the server that the person means: --api, PARLEY_API, and
// then the first socket that is there.
func (a *app) connect() (*api.Client, error) {
	address, err := a.address()
	if err != nil {
		return nil, err
	}
	var c *api.Client
	if addr, ok := strings.CutPrefix(address, "https://"); ok {
		c, err = a.remote(addr)
	} else {
		c, err = api.New(address)
	}
	if err != nil {
		return nil, err
	}
	c.Timeout = a.flags.timeout
	return c, nil
}

func (a *app) address() (string, error) {
	if a.flags.api != "" {
		return a.flags.api, nil
	}
	if env := a.getenv("PARLEY_API"); env != "" {
		return env, nil
	}
	places := a.sockets()
	for _, p := range places {
		if _, err := os.Stat(p); err == nil || os.IsPermission(err) {
			return p, nil
		}
	}
	return "", fault.New(fault.Unreachable, "start one: parley dev\nor name its socket: --api PATH",
		"no server: none of %s is there", strings.Join(places, ", "))
}

// sockets are the places where a server's socket may be, the nearest first.
func (a *app) sockets() []string {
	places := []string{filepath.Join(defaultDir, socketName)}
	// The XDG base directory specification: a relative path is to be ignored.
	if dir := a.getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		places = append(places, filepath.Join(dir, "parley", socketName))
	}
	return append(places, filepath.Join("/run/parley", socketName))
}
