//go:build !linux

package spool

// ready does nothing: the request path takes its page faults.
func (g *segment) ready(int) {}
