package workload_test

import (
	"fmt"
	"testing"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/workload"
	"github.com/parleymesh/parley/internal/workload/xtest"
)

// A refused program that connects again and again is on record, but does not
// fill the log.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	for i := range 40 {
		conn, api := dial(t, a)
		_, err := api.FetchJWTSVID(withHeader(t, "true"), &workloadpb.JWTSVIDRequest{Audience: []string{"orders"}})
		if status.Code(err) != codes.PermissionDenied {
			t.Fatalf("connection %d: %v", i, err)
		}
		conn.Close()
	}
	events := a.Events()
	if len(events) != 1 || events[0].Action != audit.WorkloadRefused {
		t.Errorf("%d events for 40 connections of one program", len(events))
	}
}

func TestRefusalsAreCountedByProgram(t *testing.T) {
	t.Parallel()
	var r workload.Refusals
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	orders := call.Process{PID: 1, UID: 1000, Exe: "/usr/bin/orders"}
	want := func(what string, p call.Process, reason string, at time.Duration, more int, due bool) {
		t.Helper()
		if m, d := r.Count(p, reason, now.Add(at)); m != more || d != due {
			t.Errorf("%s: got %d, %t, want %d, %t", what, m, d, more, due)
		}
	}
	want("first", orders, "no_identity", 0, 0, true)
	orders.PID = 2
	want("again, another process", orders, "no_identity", time.Second, 0, false)
	want("another reason", orders, "not_attested", time.Second, 0, true)
	want("another program", call.Process{UID: 1000, Exe: "/usr/bin/curl"}, "no_identity", time.Second, 0, true)
	want("another user", call.Process{UID: 1001, Exe: "/usr/bin/orders"}, "no_identity", time.Second, 0, true)
	want("at the period's end", orders, "no_identity", 10*time.Second, 1, true)
	want("a clock set back", orders, "no_identity", -time.Hour, 0, true)
}

// A user with any number of programs takes bounded memory and bounded records.
func TestRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	var r workload.Refusals
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	due := 0
	for i := range 20_000 {
		if _, d := r.Count(call.Process{UID: 1000, Exe: fmt.Sprint("/tmp/", i)}, "no_identity", now); d {
			due++
		}
	}
	if due > 1100 || r.Len() > 2100 {
		t.Errorf("%d records, %d programs remembered", due, r.Len())
	}
	if _, d := r.Count(call.Process{UID: 1001, Exe: "/usr/bin/curl"}, "no_identity", now); !d {
		t.Error("another user's first refusal was not recorded")
	}
	if _, d := r.Count(call.Process{UID: 1000, Exe: "/usr/bin/late"}, "no_identity", now.Add(time.Hour)); !d {
		t.Error("the programs of an hour ago still hide a new one")
	}
}
