package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/parleymesh/parley/internal/fault"
)

func TestExitCode(t *testing.T) {
	t.Parallel()
	f := func(c fault.Code) error { return fault.New(c, "", "x") }
	for name, tc := range map[string]struct {
		err  error
		want int
	}{
		"done":                {nil, 0},
		"no":                  {errNo, 1},
		"no, joined":          {errors.Join(errNo, nil), 1},
		"broken log":          {f(fault.LogBroken), 1},
		"conflict":            {f(fault.Conflict), 1},
		"conflict, untried":   {untried{f(fault.Conflict)}, 3},
		"not found, untried":  {untried{f(fault.NotFound)}, 2},
		"usage":               {f(fault.Usage), 2},
		"not found":           {f(fault.NotFound), 2},
		"refused by the API":  {f(fault.BadRequest), 2},
		"mesh file":           {f(fault.MeshUnknownName), 2},
		"mesh file, wrapped":  {fmt.Errorf("apply: %w", f(fault.MeshSyntax)), 2},
		"several":             {fault.List{fault.New(fault.MeshType, "", "x"), fault.New(fault.Internal, "", "x")}, 2},
		"unreachable":         {f(fault.Unreachable), 3},
		"not permitted":       {f(fault.NotPermitted), 3},
		"disk full":           {f(fault.StoreFull), 3},
		"database url":        {f(fault.StoreURL), 2},
		"database away":       {f(fault.StoreUnreachable), 3},
		"port occupied":       {f(fault.PortOccupied), 3},
		"anything else":       {errors.New("x"), 3},
		"timeout":             {context.DeadlineExceeded, 3},
		"cancelled by itself": {context.Canceled, 3},
	} {
		if got := exitCode(t.Context(), tc.err); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	if got := exitCode(interrupted, fmt.Errorf("ask: %w", context.Canceled)); got != 130 {
		t.Errorf("interrupted: %d, want 130", got)
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	commands := []string{"apply", "audit", "ca", "cert", "config", "dev", "explain", "status", "version", "why"}
	for typed, want := range map[string]string{
		"stauts": "status", "stat": "status", "aply": "apply", "wyh": "why", "exp": "explain", "Status": "status",
		"frobnicate": "", "x": "", "": "", "zz": "", "certs": "cert",
	} {
		if got := nearest(typed, commands); got != want {
			t.Errorf("%q: %q, want %q", typed, got, want)
		}
	}
}

// That another verification runs is no answer about the mesh: to a build it is not as if
// something had got through.
func TestVerifyBesideAnother(t *testing.T) {
	t.Parallel()
	if out, errs, code := ask(t, serve(t, "conflict.json"), "verify", false, false, 0); code != 3 || errs == "" {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}
