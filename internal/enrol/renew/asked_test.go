package renew_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestRenewIsNotHeldToTheSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		k := start(t, config(a))
		<-k.Ready()
		first := credential(t, k).Serial()
		time.Sleep(time.Minute)
		asked := time.Now()
		<-k.Renew()
		if d := time.Since(asked); d != 0 {
			t.Errorf("renewed %s later", d)
		}
		second := credential(t, k).Serial()
		if second == first {
			t.Error("the channel closed before the credential was there")
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if n := len(a.calls()); n != 2 || credential(t, k).Serial() != second {
			t.Errorf("%d requests: one renewal was asked for", n)
		}
	})
}

// A credential that was being asked for already may hold what was true before.
func TestRenewDuringAnAttemptMakesAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		a.set(func() { a.hang = true })
		k := start(t, config(a))
		synctest.Wait() // the first request hangs, for 30 s at most
		done := k.Renew()
		a.set(func() { a.hang = false })
		<-done
		synctest.Wait()
		if n := len(a.calls()); n != 2 {
			t.Errorf("%d requests, want the one that hung and another", n)
		}
	})
}

func TestRenewGoesOnAfterFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		k := start(t, config(a))
		<-k.Ready()
		a.set(func() { a.fail = errors.New("no") })
		done := k.Renew()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := len(a.calls()); n < 3 || n > 10 {
			t.Errorf("%d requests in 10 s of failures", n)
		}
		select {
		case <-done:
			t.Error("closed without a new credential")
		default:
		}
		a.set(func() { a.fail = nil })
		<-done
	})
}

// A mesh with short leaves is not out of work for a minute after an outage.
func TestShortLeafIsBackSoonAfterAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(12 * time.Second)
		k := start(t, config(a))
		<-k.Ready()
		a.set(func() { a.fail = errors.New("down") })
		time.Sleep(5 * time.Minute)
		a.set(func() { a.fail = nil })
		time.Sleep(12 * time.Second)
		synctest.Wait()
		credential(t, k)
	})
}
