package audit

// Known is how many kinds t tells apart.
func Known[K comparable](t *Throttle[K]) int { return len(t.known) }
