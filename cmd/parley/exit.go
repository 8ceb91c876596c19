package main

import (
	"context"
	"errors"

	"github.com/parleymesh/parley/internal/fault"
)

// The exit codes, the whole table. They are decided in this file and nowhere else.
const (
	exitDone    = 0 // yes, done, as it should be
	exitNo      = 1 // it was tried, and the answer is no
	exitInput   = 2 // the command line or the mesh file is wrong
	exitFailed  = 3 // it could not be found out or done
	exitSignal  = 130
	exitSummary = `0  yes, done, as it should be
1  the answer is no: denied, broken, something needs you
2  the command line or the mesh file is wrong
3  it could not be found out: no server, no answer in time, not permitted`
)

// errNo is how a command that has said everything reports that the answer is no.
var errNo = errors.New("the answer is no")

// said is an error that the answer itself has told: a document is one document.
type said struct{ error }

// Unwrap is the error.
func (s said) Unwrap() error { return s.error }

// untried is an error of a command whose "no" is an answer of its own: it could not be
// found out, whatever the fault says elsewhere.
type untried struct{ error }

// Unwrap is the error.
func (u untried) Unwrap() error { return u.error }

// exit says what went wrong, if anything, and is the process's exit code.
func (a *app) exit(ctx context.Context, err error) int {
	if err == nil && a.term != nil {
		err = a.term.Lost()
	}
	code := exitCode(ctx, err)
	var told said
	if err == nil || errors.Is(err, errNo) || errors.As(err, &told) || code == exitSignal {
		return code
	}
	t := a.term
	if t == nil {
		t = a.fallback()
	}
	localFaults(err)
	t.Error(err, code)
	return code
}

func exitCode(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errNo):
		return exitNo
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return exitSignal
	}
	if all := fault.All(err); len(all) > 0 {
		code := faultExit(all[0].Code)
		if u := (untried{}); code == exitNo && errors.As(err, &u) {
			code = exitFailed
		}
		return code
	}
	return exitFailed
}

// faultExit is the exit code of a fault: of a list, the first one's counts.
func faultExit(c fault.Code) int {
	switch c {
	case fault.Usage, fault.NotFound, fault.BadRequest, fault.StoreURL:
		return exitInput
	case fault.Conflict, fault.CertUnusable, fault.LogBroken:
		return exitNo
	}
	if len(c) == len("PAR-1000") && c[:len("PAR-1")] == "PAR-1" {
		return exitInput
	}
	return exitFailed
}
