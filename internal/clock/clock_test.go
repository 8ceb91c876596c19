package clock_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/clock"
)

func TestSystemSleep(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	tests := []struct {
		name string
		ctx  func(context.Context) (context.Context, context.CancelFunc)
		d    time.Duration
		want error
		took time.Duration
	}{
		{"whole", noDeadline, time.Hour, nil, time.Hour},
		{"zero", noDeadline, 0, nil, 0},
		{"negative", noDeadline, -time.Second, nil, 0},
		{"deadline first", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Minute)
		}, time.Hour, context.DeadlineExceeded, time.Minute},
		{"ended before", func(context.Context) (context.Context, context.CancelFunc) { return ended, func() {} }, time.Hour, context.Canceled, 0},
		{"ended before, zero", func(context.Context) (context.Context, context.CancelFunc) { return ended, func() {} }, 0, context.Canceled, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := tt.ctx(t.Context())
				defer cancel()
				var c clock.System
				begin := c.Now()
				err := c.Sleep(ctx, tt.d)
				if took := c.Now().Sub(begin); took != tt.took || !errors.Is(err, tt.want) {
					t.Errorf("slept %s and returned %v, want %s and %v", took, err, tt.took, tt.want)
				}
			})
		})
	}
}

func noDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return ctx, func() {}
}

func TestShifted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := clock.System{}
		c := clock.Shifted{Base: base, Offset: -2 * time.Hour}
		if d := base.Now().Sub(c.Now()); d != 2*time.Hour {
			t.Errorf("the clock is %s behind", d)
		}
		begin := base.Now()
		if err := c.Sleep(t.Context(), time.Minute); err != nil || base.Now().Sub(begin) != time.Minute {
			t.Errorf("slept %s, %v", base.Now().Sub(begin), err)
		}
	})
}
