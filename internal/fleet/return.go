package fleet

import (
	"context"
	"time"
)

// returnTime is how long a server that started waits for agents to come back, which
// try at least every six seconds.
const returnTime = 8 * time.Second

// AwaitReturn says that what was published is what agents were told before the server
// started anew. Which services they announce it does not know until they are back, so
// it tells no other host anything before all of them are: to be told of none would take
// the service away from its callers. It waits for returnTime at most, and not at all once
// there is a change that agents have to know.
func (f *Fleet) AwaitReturn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.snapshot == nil || len(f.state.snapshot.Hosts) == 0 {
		return
	}
	f.awaited = map[string]bool{}
	for _, s := range f.state.snapshot.Services {
		if s.Inbound == nil {
			continue
		}
		for _, on := range s.RunsOn {
			f.awaited[on] = true
		}
	}
	go func() { // ends by itself
		_ = f.cfg.Clock.Sleep(context.Background(), returnTime)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.returned()
	}()
}

// returns notes that host has said what it announces. It requires f.mu.
func (f *Fleet) returns(host string) {
	delete(f.awaited, host)
	if f.awaited != nil && len(f.awaited) == 0 {
		f.returned()
	}
}

// returned ends the wait. It requires f.mu.
func (f *Fleet) returned() {
	if f.awaited != nil {
		f.awaited = nil
		f.wakeTellers()
	}
}
