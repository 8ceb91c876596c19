package audit

// Known is how many kinds t tells apart.
func Known[K comparable](t *Throttle[K]) int { return len(t.known) }

// Both ways to read a body.
var (
	Read     = read
	ReadJSON = readJSON
)
