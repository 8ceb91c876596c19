package agent

import (
	"context"
	"errors"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
)

type sinkFunc func(context.Context) error

func (sinkFunc) Cursor(context.Context, string) (uint64, error) { return 0, nil }

func (f sinkFunc) Collect(ctx context.Context, _ string, _ []audit.Entry) error { return f(ctx) }

func TestDeliveryIsHowItWentLast(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	var answer error
	w := &watched{Sink: sinkFunc(func(context.Context) error { return answer })}
	a := &Agent{sink: w}
	var _ collect.Sink = w
	want := func(what string, want error) {
		t.Helper()
		if got := a.Delivery(); !errors.Is(got, want) || (got == nil) != (want == nil) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	want("at first", nil)
	answer = full
	if err := w.Collect(t.Context(), "log", nil); !errors.Is(err, full) {
		t.Errorf("the sink's error became %v", err)
	}
	want("refused", full)
	ended, end := context.WithCancel(t.Context())
	end()
	answer = ended.Err()
	_ = w.Collect(ended, "log", nil) // its error is not what is asked for
	want("interrupted", full)
	answer = nil
	if err := w.Collect(t.Context(), "log", nil); err != nil {
		t.Error(err)
	}
	want("taken", nil)
}
