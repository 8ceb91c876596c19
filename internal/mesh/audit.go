package mesh

import "github.com/parleymesh/parley/internal/snapshot"

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
