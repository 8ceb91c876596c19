package main

import (
	"os"
	"path/filepath"
)

// places are where a role keeps its files: those of the system for root, and of the
// person otherwise (XDG base directory specification). An explicit directory holds
// its sockets too.
func (a *app) places(role, dir, socket string) (string, string) {
	if socket == "" && dir != "" {
		socket = filepath.Join(dir, socketOf[role])
	}
	if dir == "" {
		dir = a.dataDir(role)
	}
	if socket == "" {
		socket = filepath.Join(a.runDir(), socketOf[role])
	}
	return dir, socket
}

// socketOf is the socket that a role serves.
var socketOf = map[string]string{"server": socketName, "agent": "workload.sock"}

func (a *app) dataDir(role string) string {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/parley", role)
	}
	if dir := a.getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "parley", role)
	}
	return filepath.Join(a.getenv("HOME"), ".local/share/parley", role)
}

func (a *app) runDir() string {
	if dir := a.getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) && os.Geteuid() != 0 {
		return filepath.Join(dir, "parley")
	}
	return "/run/parley"
}
