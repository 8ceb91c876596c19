package mesh

import (
	"fmt"
	"time"

	"github.com/parleymesh/parley/internal/snapshot"
)

// The values of Audit.WhenFull.
const (
	whenFullRefuse = "refuse"
	whenFullGap    = "gap"
)

// whenFull is what becomes of a call that cannot be recorded.
func (a *Audit) whenFull() string {
	if a == nil {
		return whenFullRefuse
	}
	return a.WhenFull
}

func (a *Audit) compile() *snapshot.Audit {
	if a.whenFull() != whenFullGap {
		return nil
	}
	return &snapshot.Audit{Gap: true}
}

// minRetention is the shortest time that events are kept: long enough for whatever
// is late, and for somebody to look.
const minRetention = time.Hour

// retention is how long events are kept; zero is for ever.
func (f *File) retention() snapshot.Retention {
	if f.Audit == nil || f.Audit.Retention == nil {
		return snapshot.Retention{}
	}
	return snapshot.Retention{Access: f.Audit.Retention.Access, Security: f.Audit.Retention.Security}
}

func (v *validator) retention() {
	kept := v.f.retention()
	for _, r := range []struct {
		at string
		d  time.Duration
	}{{"audit.retention.access", kept.Access}, {"audit.retention.security", kept.Security}} {
		if _, written := v.f.places[r.at]; written && r.d < minRetention {
			v.malformed(r.at, r.d.String(), "out of range", "write at least "+short(minRetention)+", such as `90d`; without the key everything is kept", "")
		}
	}
}

// retention compares how long events are kept. To keep them for less time is the one
// change of a mesh file that another change does not undo.
func (d *differ) retention() {
	old, new := d.old.retention(), d.new.retention()
	for _, r := range []struct {
		key      string
		old, new time.Duration
	}{{"access", old.Access, new.Access}, {"security", old.Security, new.Security}} {
		if r.old == r.new {
			continue
		}
		detail := fmt.Sprintf("%s -> %s", kept(r.old), kept(r.new))
		if r.new != 0 && (r.old == 0 || r.new < r.old) {
			detail += "; what is older is emptied, for good"
		}
		d.add(Changed, "setting", "audit.retention."+r.key, detail, "")
	}
}

// kept is for how long, in words.
func kept(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d == 0:
		return "for ever"
	case d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	}
	return short(d)
}
